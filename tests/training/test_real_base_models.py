"""The presets of real base models from photos to a LoRA file, on narrow models with exactly their names."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from difflora.base_model import BaseModel
from difflora.layout import ATTENTION
from difflora.lora import Lora
from difflora.model import DiffLoRA
from difflora.patch import apply_lora
from difflora.synthetic import world
from training import make_loras, presets, recommending, train_dit, train_lae
from training.pictures import RenderedPeople
from training.presets import Drawing, preset

pytest.importorskip("diffusers")
MODULES = {"sd15": 128, "sdxl": 560}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rendered people, six photos each, as a user has them: one folder per person."""
    folder = tmp_path_factory.mktemp("photos")
    pictures, _ = RenderedPeople("train", 6).pictures([0, 1, 2], 128)
    for person, own in enumerate(pictures):
        (folder / f"person {person}").mkdir()
        for number, picture in enumerate(own):
            pixels = ((picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(folder / f"person {person}" / f"{number}.png")
    return folder


def small(name: str) -> presets.Preset:
    """The preset of a real base model with networks and step counts that take seconds."""
    tiny = preset("tiny")
    dit = replace(
        tiny.dit, num_steps=2, image_loss_from=1, validate_every=2, image_people=1, image_loss_weight=1.0
    )
    library = replace(preset(name).lora_library, steps=2, pictures=2, precision="float32")
    drawing = Drawing(num_steps=1, guidance_scale=2.0, people_at_once=1)
    lae = replace(tiny.lae, num_steps=4)
    return replace(
        preset(name), networks=tiny.networks, lae=lae, dit=dit, lora_library=library, drawing=drawing
    )


@pytest.mark.parametrize("name", MODULES)
def test_photos_to_lora_file(
    name: str,
    mini_pipelines: dict[str, Path],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(presets.PRESETS, name, small(name))
    monkeypatch.setattr(recommending, "STRENGTHS", (1.0,))
    library, lae, dit = (str(tmp_path / folder) for folder in ("loras", "lae", "dit"))
    base_model = ["--preset", name, "--base", str(mini_pipelines[name]), "--photos", str(photos)]
    make_loras.main([*base_model, "--out", library])
    train_lae.main(["--preset", name, "--library", library, "--out", lae])
    encoders = ["--face-pack", str(world.FACE_PACK), "--image-encoder", str(world.IMAGE_ENCODER)]
    trained = ["--library", library, "--lae", f"{lae}/lae.safetensors", "--cache", str(tmp_path / "cache")]
    train_dit.main([*base_model, *encoders, *trained, "--out", dit])

    model = DiffLoRA.load(f"{dit}/difflora.safetensors", world.FACE_PACK, world.IMAGE_ENCODER)
    assert len(model.layout.modules) == MODULES[name]
    photo = photos / "person 0" / "0.png"
    path = model.generate(model.encode([photo]), seed=1, noise_scale=1.0).save(tmp_path / "ann.safetensors")
    lora = Lora.load(path)
    assert lora.metadata["ss_base_model_version"] == preset(name).base.name
    assert all(module.name.endswith(ATTENTION) for module in lora.layout.modules)

    base = BaseModel.load(mini_pipelines[name])
    noisy = torch.randn(1, *base.latent_shape, generator=torch.Generator().manual_seed(0))
    told, t = base.encode_prompts(["a photo of a person"]), torch.tensor([500])
    with torch.no_grad():
        plain = base.denoise(noisy, t, told)
        with apply_lora(base.denoiser, lora, strength=5.0):
            patched = base.denoise(noisy, t, told)
        restored = base.denoise(noisy, t, told)
    assert not torch.allclose(patched, plain, atol=1e-4)
    assert torch.equal(restored, plain)


def test_a_real_base_model_needs_photos_of_real_people(tmp_path: Path) -> None:
    with pytest.raises(presets.DiffLoRAError, match="--photos is missing: give a folder with one folder"):
        make_loras.main(["--preset", "sdxl", "--base", str(tmp_path), "--out", str(tmp_path / "loras")])

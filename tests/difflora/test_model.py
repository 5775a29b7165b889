"""DiffLoRA: features -> LoRA. The face models are not needed for that."""

import pytest
import torch

from difflora import model as model_module
from difflora.autoencoder import LaeConfig
from difflora.checkpoint import Checkpoint, Recommended
from difflora.errors import CheckpointError, DiffLoRAError, FaceModelError
from difflora.features import IdentityFeatures
from difflora.hypernetwork import HypernetworkConfig, LoraHypernetwork
from difflora.layout import LoraLayout, ModuleSpec, init_shared_down
from difflora.mixing import MifConfig
from difflora.model import DiffLoRA, pad_photos
from difflora.transformer import DitConfig

LAYOUT = LoraLayout((ModuleSpec("a", 8, 12), ModuleSpec("b", 8, 10)), rank=2, alpha=2.0)
CONFIG = HypernetworkConfig(
    LaeConfig(latent_tokens=3, latent_channels=4, token_size=8, token_width=4, width=8),
    MifConfig(image_width=6, width=8, heads=2),
    DitConfig(latent_tokens=3, latent_channels=4, condition_width=8, width=16, depth=1, heads=2),
)


@pytest.fixture
def model() -> DiffLoRA:
    torch.manual_seed(0)
    networks = LoraHypernetwork(LAYOUT, CONFIG).eval().requires_grad_(False)
    for parameter in networks.dit.parameters():  # away from the zero start
        torch.nn.init.normal_(parameter, std=0.3)
    recommended = Recommended(strength=1.5, num_steps=3)
    return DiffLoRA(Checkpoint(networks, init_shared_down(LAYOUT), "tiny", "synthetic", "clip", recommended))


def person(photos: int, seed: int = 0) -> IdentityFeatures:
    generator = torch.Generator().manual_seed(seed)
    face = torch.nn.functional.normalize(torch.randn(photos, 512, generator=generator), dim=-1)
    return IdentityFeatures(face, torch.randn(photos, 6, generator=generator))


def test_seed_decides_and_metadata_tell(model: DiffLoRA) -> None:
    steps: list[tuple[int, int]] = []
    lora = model.generate(person(2), seed=7, progress=lambda *done: steps.append(done))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert torch.equal(lora.flat(), model.generate(person(2), seed=7).flat())
    assert not torch.equal(lora.flat(), model.generate(person(2), seed=8).flat())
    assert lora.metadata["difflora.recommended_strength"] == "1.5"
    assert lora.metadata["difflora.seed"] == "7"
    assert lora.metadata["ss_base_model_version"] == "tiny"
    assert lora.layout == LAYOUT
    torch.testing.assert_close(lora.down["a"], model.shared_down["a"])


def test_zero_noise_ignores_the_seed(model: DiffLoRA) -> None:
    first, second = (model.generate(person(1), seed=seed, noise_scale=0.0).flat() for seed in (0, 1))
    assert torch.equal(first, second)


def test_a_batch_is_everybody_alone(model: DiffLoRA) -> None:
    people = [person(1, seed=1), person(3, seed=2)]
    together = model.generate_weights(people, seed=5)
    for row, features in zip(together, people, strict=True):
        torch.testing.assert_close(row, model.generate(features, seed=5).flat(), rtol=1e-4, atol=1e-5)


def test_padding_marks_missing_photos() -> None:
    face, image, mask = pad_photos([person(1), person(3)], "cpu")
    assert face.shape == (2, 3, 512) and image.shape == (2, 3, 6)
    assert mask.tolist() == [[True, False, False], [True, True, True]]


def test_errors_say_what_to_do(model: DiffLoRA, tmp_path, monkeypatch) -> None:
    with pytest.raises(DiffLoRAError, match="at least one photo"):
        model.generate(person(0))
    with pytest.raises(FaceModelError, match="pass face_pack="):
        model.encode(["photo.png"])
    with pytest.raises(DiffLoRAError, match="was trained on"):
        model.generate(IdentityFeatures(torch.zeros(1, 512), torch.zeros(1, 5)))
    monkeypatch.setattr(model_module, "EMBEDDED_CHECKPOINT", tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="train_world"):
        DiffLoRA.load()
    with pytest.raises(CheckpointError, match="no such file"):
        DiffLoRA.load(tmp_path / "absent.safetensors")

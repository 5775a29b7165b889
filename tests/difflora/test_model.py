"""DiffLoRA: features -> LoRA. The face models are not needed for that."""

from dataclasses import replace

import pytest
import torch

from difflora import model as model_module
from difflora.autoencoder import LaeConfig
from difflora.checkpoint import Checkpoint, Recommended
from difflora.errors import CheckpointError, DiffLoRAError, FaceModelError
from difflora.features import Encoders, IdentityFeatures, ImageEncoder
from difflora.hypernetwork import HypernetworkConfig, LoraHypernetwork
from difflora.latents import BLEND_MODES, blend_latents
from difflora.layout import LoraLayout, ModuleSpec, init_shared_down
from difflora.mixing import MifConfig
from difflora.model import EMBEDDED_IMAGE_ENCODER, DiffLoRA
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
    networks = LoraHypernetwork(LAYOUT, CONFIG).train(False).requires_grad_(False)
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


def test_generating_is_sampling_a_latent_and_decoding_it(model: DiffLoRA) -> None:
    latent = model.generate_latent(person(2), seed=7)
    lora, direct = model.decode(latent), model.generate(person(2), seed=7)
    assert latent.latent.shape == (3, 4)
    assert torch.equal(lora.flat(), direct.flat()) and lora.metadata == direct.metadata
    # the latent is all that a LoRA is: what it was sampled from does not matter any more
    torch.testing.assert_close(lora.flat()[None], model.generate_weights([person(2)], seed=7))


def test_a_blend_with_all_weight_on_one_is_that_one(model: DiffLoRA) -> None:
    people = [person(1, seed=1), person(3, seed=2)]
    latents = [model.generate_latent(features, seed=5) for features in people]
    for weights, features in (((1.0, 0.0), people[0]), ((0.0, 0.3), people[1])):
        for mode in BLEND_MODES:
            blended = model.decode(blend_latents(latents, weights, mode))
            assert torch.equal(blended.flat(), model.generate(features, seed=5).flat())
            assert blended.metadata["difflora.seed"] == "5"
    halfway = model.decode(blend_latents(latents, (1.0, 1.0)))
    assert halfway.metadata["difflora.blend_weights"] == "0.5 0.5"
    assert "difflora.seed" not in halfway.metadata


def test_only_its_own_autoencoder_decodes_a_latent(model: DiffLoRA) -> None:
    latent = replace(model.generate_latent(person(1)), autoencoder="another")
    with pytest.raises(DiffLoRAError, match="another DiffLoRA checkpoint"):
        model.decode(latent)


def test_weights_of_photos_count(model: DiffLoRA) -> None:
    features = person(2)
    twice = IdentityFeatures(features.face_embedding[[0, 0, 1]], features.image_features[[0, 0, 1]])
    weighted = replace(features, weights=torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(
        model.generate(weighted).flat(), model.generate(twice).flat(), rtol=1e-4, atol=1e-5
    )
    assert not torch.allclose(model.generate(weighted).flat(), model.generate(features).flat())


def test_features_of_other_encoders_are_refused(model: DiffLoRA) -> None:
    ours = replace(person(1), encoders=Encoders("synthetic", "0123", "clip", "4567"))
    model.generate(ours)  # no face models are loaded here: the names decide
    with pytest.raises(DiffLoRAError, match=r"face pack 'buffalo_l'.*encode the photos again"):
        model.generate(replace(ours, encoders=Encoders("buffalo_l", "0123", "clip", "4567")))


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


def test_the_image_encoder_gets_the_grid_that_the_checkpoint_needs() -> None:
    plain = ImageEncoder(EMBEDDED_IMAGE_ENCODER)
    model = DiffLoRA.load(image_encoder=plain)
    needed = model.checkpoint.networks.config.mif
    assert needed.image_grid > 0, "else this test shows nothing"
    assert model.image_encoder is not None and model.image_encoder.width == needed.image_width > plain.width
    assert model.encoders == DiffLoRA.load().encoders

import dataclasses

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from difflora import base_model  # noqa: E402
from difflora.base_model import PREDICTION_TYPES, BaseModel  # noqa: E402
from difflora.errors import CheckpointError  # noqa: E402
from difflora.picture_autoencoder import PatchAutoencoder  # noqa: E402
from training.world_pipeline import (  # noqa: E402
    BaseModelConfig,
    build_denoiser,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    save_pipeline,
)

SIZES = BaseModelConfig(
    picture_px=32, pooling=1, channels=(32, 32), latent_channels=4, text_width=32, text_layers=1
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    tokenizer = build_tokenizer(path / "tok")
    autoencoder = PatchAutoencoder(latent_channels=4)
    text_encoder = build_text_encoder(SIZES, tokenizer)
    save_pipeline(path / "base", build_denoiser(SIZES), text_encoder, tokenizer, autoencoder, torch.float32)
    return path / "base"


@pytest.fixture(scope="module")
def base(folder):
    return BaseModel.load(folder)


def test_it_is_a_genuine_diffusers_pipeline(folder, base):
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, *base.latent_shape, generator=torch.Generator().manual_seed(0))
    picture = pipeline(
        "a photo of a person", num_inference_steps=4, latents=noise, guidance_scale=1.0, output_type="pt"
    )
    assert picture.images.shape == (1, 3, 32, 32)


def test_fingerprint_names_the_weights(folder, base):
    assert BaseModel.load(folder).fingerprint == base.fingerprint
    other = BaseModel.load(folder)
    with torch.no_grad():
        next(other.denoiser.parameters()).mul_(1.5)
    assert other.fingerprint != base.fingerprint
    assert other.encoders_fingerprint == base.encoders_fingerprint


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_every_prediction_type_gives_the_same_clean_latents(base, kind):
    """A denoiser that knows the truth, in each of the three languages."""
    truth = torch.randn(3, *base.latent_shape, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(3, *base.latent_shape, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([10, 400, 900])
    alpha = base.alphas_cumprod[t][:, None, None, None]
    outputs = {
        "sample": truth,
        "epsilon": noise,
        "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * truth,
    }

    class Oracle(torch.nn.Module):
        def forward(self, noisy, t, encoder_hidden_states):
            return type("Output", (), {"sample": outputs[kind]})()

    knowing = dataclasses.replace(base, denoiser=Oracle(), prediction_type=kind)
    clean = knowing.predict(knowing.add_noise(truth, noise, t), t, None)
    assert torch.allclose(clean, truth, atol=2e-3)
    assert torch.allclose(knowing.denoising_loss(truth, None, noise, t), torch.zeros(3), atol=1e-6)


def test_sampler_equals_diffusers_ddim(base):
    steps = 5
    noise = torch.randn(2, *base.latent_shape, generator=torch.Generator().manual_seed(3))
    prompts = base.encode_prompts(["a photo of a person", "smiling"])
    scheduler = build_scheduler()
    scheduler.timesteps = torch.linspace(999, 0, steps + 1).round().long()[:-1]
    x = noise
    for i, t in enumerate(scheduler.timesteps):
        clean = base.predict(x, t.expand(2), prompts)
        # diffusers' own formula, between our times: scheduler.step assumes evenly spaced ones
        following = scheduler.timesteps[i + 1] if i + 1 < steps else None
        x = (
            clean
            if following is None
            else scheduler.add_noise(
                clean,
                (x - scheduler.alphas_cumprod[t].sqrt() * clean) / (1 - scheduler.alphas_cumprod[t]).sqrt(),
                following.expand(2),
            )
        )
    assert torch.allclose(base.sample(prompts, noise, steps), x, atol=1e-5)


def test_guidance_one_equals_no_guidance_and_two_extrapolates(base):
    noise = torch.randn(1, *base.latent_shape, generator=torch.Generator().manual_seed(4))
    prompt, empty = base.encode_prompts(["smiling"]), base.encode_prompts([""])
    plain, free = base.sample(prompt, noise, 1), base.sample(empty, noise, 1)
    guided = base.sample(prompt, noise, 1, guidance_scale=2.0)
    assert torch.allclose(guided, 2 * plain - free, atol=1e-5)


def test_pictures_in_groups_equal_pictures_at_once(base, monkeypatch):
    pictures = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1
    latents = base.encode_images(pictures)
    decoded = base.decode(latents)
    monkeypatch.setattr(base_model, "PIXELS_AT_ONCE", 1)  # fewer than one picture has: one at a time
    assert torch.allclose(base.encode_images(pictures), latents, atol=1e-6)
    assert torch.allclose(base.decode(latents), decoded, atol=1e-6)
    assert base.picture_px == decoded.shape[-1] == 32


def test_not_a_pipeline(tmp_path):
    with pytest.raises(CheckpointError, match=r"model_index\.json"):
        BaseModel.load(tmp_path)

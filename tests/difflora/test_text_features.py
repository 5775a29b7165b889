"""Text features of the narrow base models equal those of diffusers' own pipelines."""

import pytest
import torch

from difflora.base_model import BaseModel
from difflora.text_features import split_text

diffusers = pytest.importorskip("diffusers")

PROMPTS = ["a photo of a person", "smiling " * 100]  # the second one is cut


def test_one_encoder(mini_pipelines):
    base = BaseModel.load(mini_pipelines["sd15"])
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(mini_pipelines["sd15"], safety_checker=None)
    expected, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)
    assert torch.equal(base.encode_prompts(PROMPTS), expected)  # (2, 77, 24)


def test_two_encoders_and_pooled_text(mini_pipelines):
    base = BaseModel.load(mini_pipelines["sdxl"])
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(mini_pipelines["sdxl"])
    words, _, pooled, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    features = base.encode_prompts(PROMPTS)
    assert features.shape == (2, 78, 64)  # 24 + 40 wide; one more row for the pooled text
    found = split_text(features, base.pooled_width)
    assert torch.equal(found[0], words) and torch.equal(found[1], pooled)


def test_pooled_text_wider_than_words():
    """Packing by hand: width 10 in rows of 4 needs three of them."""
    words, pooled = torch.randn(2, 5, 4), torch.randn(2, 10)
    rows = torch.cat([pooled, torch.zeros(2, 2)], dim=1).unflatten(1, (3, 4))
    found = split_text(torch.cat([words, rows], dim=1), 10)
    assert torch.equal(found[0], words) and torch.equal(found[1], pooled)


def test_the_denoiser_is_told_what_the_pipeline_tells_it(mini_pipelines):
    """One DDIM step of diffusers' SDXL pipeline with guidance, against ours."""
    base = BaseModel.load(mini_pipelines["sdxl"])
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(mini_pipelines["sdxl"])
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, *base.latent_shape, generator=torch.Generator().manual_seed(0))
    told = []
    forward = pipeline.unet.forward
    pipeline.unet.forward = lambda *args, **named: told.append((args, named)) or forward(*args, **named)
    pipeline(
        "smiling",
        negative_prompt="",
        num_inference_steps=1,
        latents=noise,
        guidance_scale=1.0,
        height=64,
        width=64,
        output_type="latent",
    )
    (noisy, t), named = told[0]
    with torch.no_grad():
        expected = forward(noisy, t, **named)[0]
        found = base.denoise(noisy, t[None], base.encode_prompts(["smiling"]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

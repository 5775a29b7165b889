"""The host's models, loaded from a pipeline folder, compute what diffusers and transformers compute.

Letters: B pictures, Cl latent channels, h, w latent size, L prompt tokens, W text width.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from pipeline_folder import LATENT_CHANNELS, TEXT_WIDTH, make_pipeline_folder

PROMPTS = ["a photo of a person, smiling", "red"]
NUM_STEPS = 8
TOLERANCE = 1e-4  # both sides are float32; outputs are of the order of 1

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def folder(comfyui, tmp_path_factory):
    """A base model with random weights."""
    pytest.importorskip("diffusers")
    return make_pipeline_folder(tmp_path_factory.mktemp("base_model") / "folder")


@pytest.fixture(scope="module")
def base(folder):
    """The same files in diffusers and transformers."""
    from difflora.base_model import BaseModel

    return BaseModel.load(folder)


@pytest.fixture(scope="module")
def inputs(base):
    """Random inputs of every part; ``sigmas`` are the noise levels that ``BaseModel.sample`` visits."""
    generator = torch.Generator().manual_seed(1)
    latents = {
        name: torch.randn(rows, LATENT_CHANNELS, 8, 8, generator=generator)
        for name, rows in (("noisy", 3), ("image_latents", 2), ("noise", 1))
    }
    steps = torch.linspace(len(base.alphas_cumprod) - 1, 0, NUM_STEPS + 1).round().long()[:-1]
    alphas = base.alphas_cumprod[steps]  # (steps,)
    return {
        **latents,
        "timesteps": torch.tensor([1, 500, 999]),
        "sigmas": torch.cat([((1 - alphas) / alphas).sqrt(), torch.zeros(1)]),  # (steps + 1,)
        "context": torch.randn(3, 77, TEXT_WIDTH, generator=generator),
        "pictures": torch.rand(2, 64, 64, 3, generator=generator),
    }


@pytest.fixture(scope="module")
def host(comfyui, folder, inputs, tmp_path_factory):
    """What the host computes from the same files and inputs."""
    work = tmp_path_factory.mktemp("host")
    save_file(inputs, work / "inputs.safetensors", metadata={"prompts": json.dumps(PROMPTS)})
    script = Path(__file__).parent / "in_host.py"
    run = subprocess.run(
        [
            comfyui.python,
            script,
            comfyui.root,
            folder,
            work / "inputs.safetensors",
            work / "outputs.safetensors",
        ],
        env=comfyui.environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return load_file(work / "outputs.safetensors")


@torch.no_grad()
def test_unet_equals_diffusers(host, base, inputs):
    expected = base.denoiser(inputs["noisy"], inputs["timesteps"], inputs["context"]).sample  # (B, Cl, h, w)
    torch.testing.assert_close(host["unet"], expected, atol=TOLERANCE, rtol=0)


def test_text_encoder_equals_transformers(host, base):
    expected = base.encode_prompts(PROMPTS)  # (B, L, W)
    torch.testing.assert_close(host["prompt_embeds"], expected, atol=TOLERANCE, rtol=0)


def test_noise_schedule_equals_diffusers(host, base):
    torch.testing.assert_close(host["alphas_cumprod"], base.alphas_cumprod, atol=1e-6, rtol=1e-5)


def test_vae_equals_the_picture_autoencoder(host, base, inputs):
    scale = base.autoencoder.config.scaling_factor  # the host's latents are not scaled, ours are
    pictures = base.decode(inputs["image_latents"] * scale) / 2 + 0.5  # (B, 3, H, W)
    torch.testing.assert_close(host["decoded"], pictures.movedim(1, -1), atol=TOLERANCE, rtol=0)
    latents = base.encode_images(inputs["pictures"].movedim(-1, 1) * 2 - 1) / scale  # (B, Cl, h, w)
    torch.testing.assert_close(host["encoded"], latents, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_sampler_equals_ours(host, base, inputs, sampler):
    """KSampler with an x0-predicting U-Net is deterministic DDIM."""
    expected = base.sample(inputs["context"][:1], inputs["noise"], NUM_STEPS)  # (1, Cl, h, w)
    latents = host[sampler] * base.autoencoder.config.scaling_factor
    torch.testing.assert_close(latents, expected, atol=TOLERANCE, rtol=0)


def test_simple_schedule_of_the_workflow_is_ours_up_to_one_timestep(host, base, inputs):
    table = host["alphas_cumprod"]
    ours, theirs = (
        ((1 / (1 + sigmas[:-1, None] ** 2)) - table).abs().argmin(dim=1)  # (steps,)
        for sigmas in (inputs["sigmas"], host["simple_sigmas"])
    )
    assert (ours - theirs).abs().max() <= 1

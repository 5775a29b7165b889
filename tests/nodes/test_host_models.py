"""The host's models, loaded from a pipeline folder, compute what diffusers and transformers compute.

Letters: B pictures, Cl latent channels, h, w latent size, T tokens, D text width.
"""

from __future__ import annotations

import itertools
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


@pytest.fixture(scope="module")
def folder(comfyui, tmp_path_factory):
    """A base model with random weights."""
    pytest.importorskip("diffusers")
    return make_pipeline_folder(tmp_path_factory.mktemp("base_model") / "folder")


@pytest.fixture(scope="module")
def inputs():
    """Random inputs of every part."""
    generator = torch.Generator().manual_seed(1)
    latents = {
        name: torch.randn(rows, LATENT_CHANNELS, 8, 8, generator=generator)
        for name, rows in (("noisy", 3), ("image_latents", 2), ("noise", 1))
    }
    return {
        **latents,
        "timesteps": torch.tensor([1, 500, 999]),
        "num_steps": torch.tensor(NUM_STEPS),
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
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return load_file(work / "outputs.safetensors")


@pytest.fixture(scope="module")
def unet(folder):
    """The same network in diffusers."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(folder / "unet").eval()


@torch.no_grad()
def test_unet_equals_diffusers(host, unet, inputs):
    expected = unet(inputs["noisy"], inputs["timesteps"], inputs["context"]).sample  # (B, Cl, h, w)
    torch.testing.assert_close(host["unet"], expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_text_encoder_equals_transformers(host, folder):
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    tokens = tokenizer(PROMPTS, padding="max_length", max_length=77, return_tensors="pt").input_ids  # (B, T)
    expected = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()(tokens)[0]  # (B, T, D)
    torch.testing.assert_close(host["prompt_embeds"], expected, atol=TOLERANCE, rtol=0)


def test_noise_schedule_equals_diffusers(host, folder):
    from diffusers import DDIMScheduler

    expected = DDIMScheduler.from_pretrained(folder / "scheduler").alphas_cumprod  # (1000,)
    torch.testing.assert_close(host["alphas_cumprod"], expected, atol=1e-6, rtol=1e-5)


def test_vae_is_the_convolution_and_its_transpose(host, folder, inputs):
    weights = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    pictures = torch.nn.functional.conv_transpose2d(
        inputs["image_latents"], weights["decoder.weight"], weights["decoder.bias"], stride=8
    )  # (B, 3, H, W)
    expected = (pictures / 2 + 0.5).clamp(0, 1).movedim(1, -1)  # (B, H, W, 3)
    torch.testing.assert_close(host["decoded"], expected, atol=TOLERANCE, rtol=0)
    expected = torch.nn.functional.conv2d(
        inputs["pictures"].movedim(-1, 1) * 2 - 1,
        weights["encoder.weight"],
        weights["encoder.bias"],
        stride=8,
    )
    torch.testing.assert_close(host["encoded"], expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_sampler_equals_ddim(host, unet, inputs, sampler):
    """KSampler with an x0-predicting U-Net is DDIM (eta 0), here in its variance-preserving form."""
    alphas = 1 / (1 + host["sigmas"] ** 2)  # (steps + 1,), the last is 1
    table = host["alphas_cumprod"]
    x = inputs["noise"] * (1 - alphas[0]).sqrt()  # (1, Cl, h, w)
    for a, a_next in itertools.pairwise(alphas):
        step = (table - a).abs().argmin()
        x0 = unet(x, step, inputs["context"][:1]).sample  # (1, Cl, h, w)
        noise = (x - a.sqrt() * x0) / (1 - a).sqrt()  # (1, Cl, h, w)
        x = a_next.sqrt() * x0 + (1 - a_next).sqrt() * noise  # (1, Cl, h, w)
    torch.testing.assert_close(host[sampler], x, atol=TOLERANCE, rtol=0)

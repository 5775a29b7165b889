"""The host's models, loaded from a pipeline folder, compute what diffusers and transformers compute.

Letters: B pictures, Cl latent channels, h, w latent size, L prompt tokens, W text width.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from difflora.autoencoder import LaeConfig
from difflora.base_model import BaseModel
from difflora.checkpoint import Checkpoint, save_checkpoint
from difflora.features import IdentityFeatures
from difflora.hypernetwork import HypernetworkConfig, LoraHypernetwork
from difflora.layout import LoraLayout, init_shared_down
from difflora.lora import lora_from_state_dict
from difflora.mixing import MifConfig
from difflora.model import DiffLoRA
from difflora.patch import apply_lora
from difflora.transformer import DitConfig

sys.path.insert(0, str(Path(__file__).parent))
from pipeline_folder import LATENT_CHANNELS, TEXT_WIDTH, make_pipeline_folder

PROMPTS = ["a photo of a person, smiling", "red"]
NUM_STEPS = 8
IMAGE_WIDTH = 6
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
    return BaseModel.load(folder)


@pytest.fixture(scope="module")
def model(base):
    """An untrained DiffLoRA for that base model, without face models."""
    layout = LoraLayout.from_model(base.denoiser, rank=2, alpha=2.0)
    config = HypernetworkConfig(
        LaeConfig(latent_tokens=3, latent_channels=4, token_size=256, token_width=4, width=8),
        MifConfig(image_width=IMAGE_WIDTH, width=8, heads=2),
        DitConfig(latent_tokens=3, latent_channels=4, condition_width=8, width=16, depth=1, heads=2),
    )
    torch.manual_seed(0)
    networks = LoraHypernetwork(layout, config).train(False).requires_grad_(False)
    for parameter in networks.dit.parameters():  # away from the zero start
        torch.nn.init.normal_(parameter, std=0.3)
    return DiffLoRA(Checkpoint(networks, init_shared_down(layout), "random", "no pack", "no encoder"))


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
        "pictures": torch.rand(2, 128, 128, 3, generator=generator),
        "face": torch.nn.functional.normalize(torch.randn(2, 512, generator=generator)),
        "image": torch.randn(2, IMAGE_WIDTH, generator=generator),
    }


@pytest.fixture(scope="module")
def host(comfyui, folder, inputs, model, tmp_path_factory):
    """What the host computes from the same files and inputs."""
    work = tmp_path_factory.mktemp("host")
    save_checkpoint(work / "difflora.safetensors", model.checkpoint)
    save_file(inputs, work / "inputs.safetensors", metadata={"prompts": json.dumps(PROMPTS)})
    comfyui.run_script(Path(__file__).parent / "in_host.py", folder, work)
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


@pytest.fixture(scope="module")
def host_lora(host):
    """The LoRA that the host generated, as a file would hold it."""
    return {key.removeprefix("lora."): tensor for key, tensor in host.items() if key.startswith("lora.")}


def test_lora_generated_in_the_host_equals_ours(host_lora, model, inputs):
    expected = model.generate(IdentityFeatures(inputs["face"], inputs["image"]), seed=3).state_dict()
    assert host_lora.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(host_lora[key], tensor.float(), atol=1e-3, rtol=1e-3)  # float16 in between


@torch.no_grad()
def test_lora_applied_in_the_host_equals_ours(host, host_lora, base, inputs):
    lora = lora_from_state_dict(host_lora)
    plain = base.denoiser(inputs["noisy"], inputs["timesteps"], inputs["context"]).sample  # (B, Cl, h, w)
    with apply_lora(base.denoiser, lora, strength=1.5):
        expected = base.denoiser(inputs["noisy"], inputs["timesteps"], inputs["context"]).sample
    assert (expected - plain).abs().max() > 100 * TOLERANCE  # the LoRA is no trifle
    torch.testing.assert_close(host["patched"], expected, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(host["unpatched"], plain, atol=TOLERANCE, rtol=0)  # and MODEL stays as it was

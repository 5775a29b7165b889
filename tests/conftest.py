"""Settings and models that several folders share. The host's own fixtures are in tests/nodes/conftest.py."""

import os

# The models in the tests are tiny: several threads on a busy machine are many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing in the tests may reach for the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator on the CPU."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the repository."""
    return Path(__file__).resolve().parents[1]


SDXL = {  # stabilityai/stable-diffusion-xl-base-1.0, unet/config.json
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@pytest.fixture(scope="session")
def sdxl_config() -> dict[str, object]:
    """Arguments of diffusers' `UNet2DConditionModel` for Stable Diffusion XL."""
    return dict(SDXL)


@pytest.fixture(scope="session")
def full_unets() -> dict[str, torch.nn.Module]:
    """The U-Nets of Stable Diffusion 1.5 and XL in full size without weights: on the meta device."""
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        return {
            "sd15": diffusers.UNet2DConditionModel(cross_attention_dim=768),  # the defaults are SD 1.5's
            "sdxl": diffusers.UNet2DConditionModel(**SDXL),
        }

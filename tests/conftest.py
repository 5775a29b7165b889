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

from training.base_presets import BASE_PRESETS, MINI_PRESETS, SDXL, save_random_pipeline

torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator on the CPU."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the repository."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def sdxl_config() -> dict[str, object]:
    """Arguments of diffusers' `UNet2DConditionModel` for Stable Diffusion XL."""
    return dict(SDXL.unet)


@pytest.fixture(scope="session")
def full_unets() -> dict[str, torch.nn.Module]:
    """The U-Nets of Stable Diffusion 1.5 and XL in full size without weights: on the meta device."""
    pytest.importorskip("diffusers")
    return {name: preset.build_unet() for name, preset in BASE_PRESETS.items()}


@pytest.fixture(scope="session")
def mini_pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of narrow base models with random weights and exactly the names of SD 1.5's and SDXL's."""
    pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("mini")
    return {name: save_random_pipeline(preset, folder / name) for name, preset in MINI_PRESETS.items()}

"""A base model of one random transformer block that draws, and a judge of colours."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from difflora.base_model import BaseModel
from difflora.picture_autoencoder import PatchAutoencoder

spec = importlib.util.spec_from_file_location(
    "training_fixtures", Path(__file__).parents[1] / "training" / "conftest.py"
)
training_fixtures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(training_fixtures)
one_block_base = training_fixtures.one_block_base


@dataclass(frozen=True)
class DrawingBase(BaseModel):
    """Embeds prompts without a text encoder, and counts what it draws."""

    fingerprint: str = "0123456789abcdef"
    drawn: tuple = ()

    def encode_prompts(self, prompts):
        return torch.stack(
            [torch.randn(5, 12, generator=torch.Generator().manual_seed(len(text))) for text in prompts]
        )


@pytest.fixture
def drawing_base(one_block_base):
    denoiser = one_block_base.denoiser
    denoiser.config = SimpleNamespace(in_channels=8, sample_size=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder = PatchAutoencoder(latent_channels=8, patch_size=2).train(False)
    alphas = one_block_base.alphas_cumprod
    return DrawingBase("one-block", denoiser, torch.nn.Identity(), None, autoencoder, alphas, "sample")


class ColourJudge:
    """A person looks like the mean of its traits; a picture is alike if it is as bright."""

    def targets(self, traits):
        return traits.mean(dim=1, keepdim=True)  # (B, 1)

    def similarity(self, pictures, targets):
        return 1 - (pictures.mean(dim=(2, 3, 4)) - targets).abs()  # (B, K)


@pytest.fixture
def judge():
    return ColourJudge()

"""A base model of one random transformer block, with everything that making LoRAs needs of it."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from difflora.base_model import BaseModel


class OneBlock(nn.Module):
    """Denoiser: one diffusers transformer block over 4 x 4 latents of 8 channels."""

    def __init__(self):
        super().__init__()
        from diffusers.models.attention import BasicTransformerBlock

        self.block = BasicTransformerBlock(8, 2, 4, cross_attention_dim=12)

    def forward(self, x, t, encoder_hidden_states):
        tokens = x.flatten(2).mT + (t / 1000)[:, None, None]  # (B, 16, 8)
        out = self.block(tokens, encoder_hidden_states=encoder_hidden_states)
        return SimpleNamespace(sample=out.mT.unflatten(2, (4, 4)))


@dataclass(frozen=True)
class OneBlockBase:
    denoiser: nn.Module
    alphas_cumprod: torch.Tensor
    name: str = "one-block"
    fingerprint: str = "0123456789abcdef"
    latent_shape: tuple = (8, 4, 4)
    device: str = "cpu"
    picture_px: int = 32

    def encode_prompts(self, prompts):
        seeds = [sum(prompt.encode()) for prompt in prompts]
        return torch.stack(
            [torch.randn(5, 12, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        )

    def encode_images(self, pictures):
        pooled = F.adaptive_avg_pool2d(pictures, 4)  # (B, 3, 4, 4)
        return torch.cat([pooled, -pooled, pooled[:, :2]], dim=1)  # (B, 8, 4, 4)

    def decode(self, latents):
        return F.interpolate(latents[:, :3], scale_factor=8)  # (B, 3, 32, 32)

    def denoising_loss(self, image_latents, prompt_embeds, noise, t):
        alpha = self.alphas_cumprod[t][:, None, None, None]
        x_t = alpha.sqrt() * image_latents + (1 - alpha).sqrt() * noise
        return (self.denoiser(x_t, t, prompt_embeds).sample - image_latents).square().flatten(1).mean(1)


@pytest.fixture
def one_block_base():
    pytest.importorskip("diffusers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = OneBlock().train(False).requires_grad_(False)
    return OneBlockBase(denoiser, torch.linspace(0.9999, 0.01, 1000))


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
    from difflora.picture_autoencoder import PatchAutoencoder

    denoiser = one_block_base.denoiser
    denoiser.config = SimpleNamespace(in_channels=8, sample_size=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder = PatchAutoencoder(latent_channels=8, patch_size=2).train(False)
    alphas = one_block_base.alphas_cumprod
    return DrawingBase("one-block", denoiser, torch.nn.Identity(), None, autoencoder, alphas, "sample")

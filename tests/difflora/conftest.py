"""A random, tiny stand-in for a base model, so that these tests need no trained weights."""

from dataclasses import dataclass

import pytest
import torch


@dataclass(frozen=True)
class TinyBase:
    """Frozen random diffusers U-Net that predicts x0; what training LoRAs needs of a base model."""

    denoiser: torch.nn.Module
    alphas_cumprod: torch.Tensor

    def denoising_loss(self, image_latents, prompt_embeds, noise, timesteps):
        alpha = self.alphas_cumprod[timesteps][:, None, None, None]
        x_t = alpha.sqrt() * image_latents + (1 - alpha).sqrt() * noise
        x0 = self.denoiser(x_t, timesteps, prompt_embeds).sample
        return (x0 - image_latents).square().mean(dim=(1, 2, 3))


@pytest.fixture
def tiny_base():
    """U-Net with the ordinary attn1 / attn2 / ff module names on 4 x 4 latents of 4 channels."""
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = diffusers.UNet2DConditionModel(
            in_channels=4,
            out_channels=4,
            sample_size=4,
            layers_per_block=1,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            cross_attention_dim=12,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
    return TinyBase(denoiser.train(False).requires_grad_(False), torch.linspace(0.9999, 0.01, 1000))


@pytest.fixture
def random_weights():
    """Function: flat weights (count, P) of about the size of trained ones."""

    def make(layout, count, seed=1, size=0.2):
        return size * torch.randn(count, layout.num_parameters, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def random_inputs():
    """Function: latents (rows, 4, 4, 4), times (rows,), prompt embeddings (rows, 5, 12)."""

    def make(rows, seed=2):
        generator = torch.Generator().manual_seed(seed)
        return (
            torch.randn(rows, 4, 4, 4, generator=generator),
            torch.randint(0, 1000, (rows,), generator=generator),
            torch.randn(rows, 5, 12, generator=generator),
        )

    return make

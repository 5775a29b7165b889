"""A base model of one linear layer, for tests of training: person p's pictures are near z_p."""

import torch
from torch import Tensor, nn

from difflora.layout import LoraLayout, ModuleSpec
from training.photo_pool import PhotoPool

WIDTH = 8
LAYOUT = LoraLayout((ModuleSpec("proj", WIDTH, WIDTH),), rank=2, alpha=2.0)


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(WIDTH, WIDTH)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)


class ToyBase:
    """Knows nothing of people: without a LoRA it predicts zeros."""

    def __init__(self) -> None:
        self.denoiser = Denoiser().requires_grad_(False)
        self.alphas_cumprod = torch.linspace(0.99, 0.5, 10)

    def denoising_loss(
        self, image_latents: Tensor, prompt_embeds: Tensor, noise: Tensor, t: Tensor
    ) -> Tensor:
        alpha = self.alphas_cumprod[t][:, None]
        noisy = alpha.sqrt() * image_latents.flatten(1) + (1 - alpha).sqrt() * noise.flatten(1)
        return (self.denoiser.proj(noisy) - image_latents.flatten(1)).square().mean(dim=1)


def pool(count: int, seed: int, photos: int = 6) -> PhotoPool:
    """People whose face embedding is a fixed linear map of z_p."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, WIDTH, generator=generator)
    embed = torch.randn(WIDTH, 512, generator=torch.Generator().manual_seed(99))
    face = torch.nn.functional.normalize(z @ embed, dim=-1)[:, None].expand(-1, photos, -1)
    latents = z[:, None] + 0.05 * torch.randn(count, photos, WIDTH, generator=generator)
    return PhotoPool(
        people=torch.arange(count),
        face=face.half(),
        image=torch.randn(count, photos, 6, generator=generator).half(),
        valid=torch.ones(count, photos, dtype=torch.bool),
        image_latents=latents[..., None, None].half(),
        prompt_index=torch.zeros(count, photos, dtype=torch.long),
        prompt_embeds=torch.zeros(1, 2, 4).half(),
    )


def best_loras(people: PhotoPool, shared_down: dict[str, Tensor]) -> Tensor:
    """LoRAs that map the pictures of each person onto themselves as well as rank 2 can, (n, P)."""
    z = people.image_latents.float().flatten(2).mean(dim=1)  # (n, WIDTH)
    inside = z @ shared_down["proj"].T  # (n, R)
    up = z[:, :, None] * (inside / inside.square().sum(dim=1, keepdim=True).clamp_min(0.3))[:, None, :]
    return up.flatten(1)

"""The base model's own loss on pictures of people, with their LoRAs: what a LoRA is worth, with a gradient.

Letters: B identities, K pictures of each, P parameters of one LoRA, (Cl, h, w) a picture's latent, L prompt
tokens, W text width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base_model import BaseModel
from .batched import batched_lora
from .layout import LoraLayout, SharedDown
from .lora_training import autocast


def picture_losses(
    base: BaseModel,
    layout: LoraLayout,
    flat_weights: Tensor,
    shared_down: SharedDown | None,
    image_latents: Tensor,
    prompt_embeds: Tensor,
    generator: torch.Generator,
    precision: str = "float32",
    strength: float = 1.0,
) -> Tensor:
    """The base model's loss with B LoRAs, each on its own K pictures.

    Args:
        base: frozen.
        layout: of the LoRAs.
        flat_weights: (B, P), may carry gradients.
        shared_down: module -> lora_down.
        image_latents: (B*K, Cl, h, w), identity-major.
        prompt_embeds: (B*K, L, W).
        generator: on the CPU, of times and noise.
        precision: autocast of the denoiser.
        strength: of the LoRAs.

    Returns:
        (B,) mean over the pictures.
    """
    batch, device = len(flat_weights), flat_weights.device
    count = len(image_latents) // batch
    strata = torch.arange(count) + torch.rand(
        batch, count, generator=generator
    )  # (B, K); one time per K-th of the range
    times = (
        (strata / count * len(base.alphas_cumprod)).long().clamp(max=len(base.alphas_cumprod) - 1)
    )  # (B, K)
    noise = torch.randn(image_latents.shape, generator=generator).to(device)  # (B*K, Cl, h, w)
    with (
        batched_lora(base.denoiser, layout, flat_weights, shared_down, strength),
        autocast(precision, device),
    ):
        losses = base.denoising_loss(
            image_latents, prompt_embeds, noise=noise, t=times.flatten().to(device)
        )  # (B*K,)
    return losses.float().unflatten(0, (batch, count)).mean(dim=1)  # (B,)

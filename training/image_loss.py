"""The image-space loss of the DiT: where it starts and what it weighs; `difflora.picture_loss` is the rest.

predicted x_0 latent -> LAE decoder -> flat weights -> patched frozen base model -> its loss on pictures of
that person.

A LoRA trained on one person is noisy; this loss averages that noise away over people, and it needs no
library: any rendered person serves. [ours]
Letters: B identities, K pictures of each, T latent tokens, C latent channels, P parameters of one LoRA.
"""

import torch
from torch import Tensor

from difflora.diffusion import q_sample
from difflora.hypernetwork import LoraHypernetwork
from difflora.mixing import Condition
from training.presets import DitTrainingConfig


@torch.no_grad()
def noised_latents(
    average: LoraHypernetwork,
    condition: Condition,
    latents: Tensor,
    has_latent: Tensor,
    config: DitTrainingConfig,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Where the image loss starts from: noised latents of people, most of whom have no LoRA of their own.

    At time 1 nothing of a latent is left, so none is needed. Below it, people without one get the averaged
    network's own prediction from pure noise, noised again ("self-distilled").

    Args:
        average: averaged networks.
        condition: (averaged) condition of the B people.
        latents: (B, T, C) standardised library latents; anything where there is none.
        has_latent: (B,) bool.
        config: fractions of rows.
        generator: on the CPU.

    Returns:
        x_t (B, T, C) and time (B,).
    """
    batch, device = len(latents), latents.device
    draw = torch.rand(3, batch, generator=generator).to(device)  # (3, B)
    highest = draw[0] < config.highest_noise_fraction  # (B,)
    time = torch.where(highest, 1.0, draw[1])  # (B,)
    noise = torch.randn(2, *latents.shape, generator=generator).to(device)  # (2, B, T, C)
    predicted = average.predict_x0(noise[0], torch.ones_like(time), condition)  # (B, T, C)
    clean = torch.where(has_latent[:, None, None], latents, predicted)  # (B, T, C)
    x_t = q_sample(clean, noise[1], *average.config.diffusion.alpha_sigma(time))  # (B, T, C)
    zero_start = highest & (draw[2] < config.zero_start_fraction)  # (B,)
    return torch.where(zero_start[:, None, None], 0.0, x_t), time


def image_loss_weight(networks: LoraHypernetwork, time: Tensor, floor: float) -> Tensor:
    """Weight over diffusion time, (B,) -> (B,): floor + (1 - floor) alpha^2, alpha^2 = SNR / (1 + SNR).

    A prediction from much noise is vague and deserves less weight, but not none: few-step sampling lives from
    it.
    """
    alpha, _ = networks.config.diffusion.alpha_sigma(time)  # (B,)
    return floor + (1 - floor) * alpha.square()  # (B,)

"""Is it the encoder that loses a LoRA, or can the decoder not say it? Fit the code to what the LoRA does.

An encoder of weights keeps what is large in a LoRA. Here the code is moved, by gradient steps, until the base
model with the decoded LoRA predicts what it predicts with the original, on pictures that the original draws:
no photo of the person is needed. [ours]
Letters: B people, K pictures of each, n of them in a step, P parameters of one LoRA, (C, h, w) an image
latent, (T, W) a prompt embedding.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from difflora.base_model import BaseModel
from difflora.batched import batched_lora
from difflora.diffusion import draw_noise
from training.evaluation_people import prompt_scenes
from training.evaluation_pictures import LoraBatch

PICTURES, PICTURE_STEPS = 8, 10
NUM_STEPS, LEARNING_RATE, NOISES = 20, 0.2, 4
"""Twenty steps are nearly all: sixty keep a hundredth more of the gain (training/LOG.md)."""


def _applied(base: BaseModel, loras: LoraBatch, flat: Tensor) -> AbstractContextManager[None]:
    return batched_lora(base.denoiser, loras.layout, flat, loras.shared_down, loras.strength)


def draw_latents(base: BaseModel, loras: LoraBatch, seed: int = 0) -> tuple[Tensor, Tensor]:
    """What LoRAs draw: image latents (B, K, C, h, w) and prompt embeddings (K, T, W).

    Args:
        base: frozen base model.
        loras: of B people.
        seed: of the noise, the same for everybody.
    """
    people = len(loras.flat)
    noise = draw_noise((PICTURES, *base.latent_shape), torch.Generator().manual_seed(seed), base.device)
    embeds = base.encode_prompts(prompt_scenes("validation", PICTURES).prompts())  # (K, T, W)
    with torch.no_grad(), _applied(base, loras, loras.flat):
        drawn = base.sample(embeds.repeat(people, 1, 1), noise.repeat(people, 1, 1, 1), PICTURE_STEPS)
    return drawn.unflatten(0, (people, PICTURES)), embeds


def fit_codes(
    base: BaseModel,
    loras: LoraBatch,
    decode: Callable[[Tensor], Tensor],
    codes: Tensor,
    num_steps: int = NUM_STEPS,
    seed: int = 0,
    spread: Tensor | None = None,
) -> Tensor:
    """Codes whose decoded LoRAs do what the original LoRAs do.

    Args:
        base: frozen base model.
        loras: the originals, of B people.
        decode: codes (B, ...) -> flat weights (B, P), with gradients.
        codes: (B, ...) to start from: what the encoder says.
        num_steps: gradient steps.
        seed: of pictures, times and noise.
        spread: (...) how much people's codes differ, the unit of the steps; by default these people's.

    Returns:
        (B, ...)
    """
    people, count, num_times = len(codes), NOISES, len(base.alphas_cumprod)
    drawn, embeds = draw_latents(base, loras, seed)  # (B, K, C, h, w), (K, T, W)
    if spread is None:
        spread = codes.std(dim=0).clamp(min=1e-6)  # (...)
    moved = torch.zeros_like(codes).requires_grad_()
    optimiser = torch.optim.Adam([moved])
    generator = torch.Generator().manual_seed(seed)
    for step in range(num_steps):
        turn = (step * count + torch.arange(count)) % PICTURES  # (n,)
        strata = (torch.arange(count) + torch.rand(count, generator=generator)) / count  # (n,) in [0, 1)
        times = (strata * num_times).long().clamp(max=num_times - 1).repeat(people)  # (B*n,)
        noise = torch.randn(count, *base.latent_shape, generator=generator).repeat(people, 1, 1, 1)
        noisy = base.add_noise(drawn[:, turn].flatten(0, 1), noise, times)  # (B*n, C, h, w)
        prompts = embeds[turn].repeat(people, 1, 1)  # (B*n, T, W)
        with torch.no_grad(), _applied(base, loras, loras.flat):
            wanted = base.denoise(noisy, times, prompts)  # (B*n, C, h, w)
        with torch.enable_grad():
            flat = decode(codes + spread * moved)  # (B, P)
            with _applied(base, loras, flat):
                error = (base.denoise(noisy, times, prompts) - wanted).square().flatten(1).mean(dim=1)
                # the sum over people: Adam works number by number, so that everybody is fitted as if alone
                loss = error.unflatten(0, (people, count)).mean(dim=1).sum()
                (moved.grad,) = torch.autograd.grad(loss, [moved])
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / num_steps)
        optimiser.step()
    return (codes + spread * moved).detach()

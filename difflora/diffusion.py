"""Diffusion over LoRA latents: schedule, x0 or v prediction, training loss, deterministic few-step sampler.

Time runs from 0 (data) to 1 (noise) and every process is variance preserving:
x_t = alpha_t x_0 + sigma_t noise with alpha_t^2 + sigma_t^2 = 1. SNR = alpha_t^2 / sigma_t^2.

Letters: B identities, T latent tokens, C latent channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import DiffLoRAError

Schedule = Callable[[Tensor], tuple[Tensor, Tensor]]
Progress = Callable[[int, int], None]

SCHEDULES = ("cosine", "linear_logsnr")
PREDICTIONS = ("x0", "v")


@dataclass(frozen=True)
class DiffusionConfig:
    """What is diffused how; saved in the checkpoint.

    Args:
        schedule: "cosine" (Nichol & Dhariwal 2102.09672, continuous as in 2301.11093) or "linear_logsnr".
        prediction: what the network's output means: "x0" or "v" (Salimans & Ho 2202.00512).
        max_logsnr: log SNR is clipped to +-this value, so that both ends stay finite.
        snr_cap: the x0-space loss weight is min(1 + SNR, snr_cap); see `loss_weight`.
    """

    schedule: str = "cosine"
    prediction: str = "x0"
    max_logsnr: float = 12.0
    snr_cap: float = 5.0

    def __post_init__(self) -> None:
        """Refuse names that nothing implements."""
        if self.schedule not in SCHEDULES:
            raise DiffLoRAError(f"unknown schedule {self.schedule!r}: use one of {', '.join(SCHEDULES)}")
        if self.prediction not in PREDICTIONS:
            raise DiffLoRAError(
                f"unknown prediction {self.prediction!r}: use one of {', '.join(PREDICTIONS)}"
            )

    def alpha_sigma(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise amplitude.

        Args:
            time: (B,) in [0, 1].

        Returns:
            alpha (B,) and sigma (B,), alpha^2 + sigma^2 = 1.
        """
        if self.schedule == "cosine":
            angle = time.clamp(1e-6, 1 - 1e-6) * (math.pi / 2)  # (B,)
            logsnr = -2 * torch.log(torch.tan(angle))  # (B,)
            logsnr = logsnr.clamp(-self.max_logsnr, self.max_logsnr)  # (B,)
        else:
            logsnr = self.max_logsnr * (1 - 2 * time)  # (B,)
        return torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()


def like(values: Tensor, x: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1) with as many axes as x."""
    return values.to(x.dtype).reshape(-1, *([1] * (x.ndim - 1)))


def q_sample(x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x_t = alpha x_0 + sigma noise: (B, ...) each, alpha and sigma (B,)."""
    return like(alpha, x0) * x0 + like(sigma, x0) * noise


def to_x0(output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor, prediction: str) -> Tensor:
    """Read the network's output as x_0; for v: x_0 = alpha x_t - sigma v (2202.00512, appendix D)."""
    if prediction == "x0":
        return output
    return like(alpha, x_t) * x_t - like(sigma, x_t) * output


def from_x0(x0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor, prediction: str) -> Tensor:
    """What the network should put out for this x_0; the inverse of `to_x0` where sigma > 0."""
    if prediction == "x0":
        return x0
    return (like(alpha, x_t) * x_t - x0) / like(sigma, x_t)


def loss_weight(alpha: Tensor, sigma: Tensor, snr_cap: float) -> Tensor:
    """min(1 + SNR, cap): the weight of a squared x_0 error at one time.

    1 + SNR is the plain v loss written in x_0 space. The cap is min-SNR's idea (2303.09556); the 1 keeps
    weight at pure noise, where the prediction from the photos alone is learned and from which few-step
    sampling lives [ours].

    Args:
        alpha: (B,).
        sigma: (B,), > 0.
        snr_cap: upper end of the weight.

    Returns:
        (B,) weights in [1, snr_cap].
    """
    return (1 + (alpha / sigma).square()).clamp(max=snr_cap)  # (B,)


def diffusion_loss(x0_prediction: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor, snr_cap: float) -> Tensor:
    """Weighted squared x_0 error per identity, a reconstruction loss: (B, ...) twice -> (B,)."""
    error = (x0_prediction - x0).float().square().flatten(1).mean(dim=1)  # (B,)
    return loss_weight(alpha, sigma, snr_cap) * error  # (B,)


def ddim_step(x_t: Tensor, x0: Tensor, now: tuple[Tensor, Tensor], then: tuple[Tensor, Tensor]) -> Tensor:
    """One deterministic step (DDIM, 2010.02502 eq. 12 with eta 0).

    Args:
        x_t: (B, ...) at the present time.
        x0: (B, ...) predicted from it.
        now: alpha (B,), sigma (B,) of the present time.
        then: the same of the next, less noisy time.

    Returns:
        (B, ...) at the next time.
    """
    noise = (x_t - like(now[0], x_t) * x0) / like(now[1], x_t)  # (B, ...)
    return q_sample(x0, noise, *then)  # (B, ...)


def draw_noise(
    shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device | str = "cpu"
) -> Tensor:
    """Gaussian noise drawn where the generator lives, so that a CPU seed means the same on every device."""
    source = generator.device if generator is not None else torch.device(device)
    return torch.randn(shape, generator=generator, device=source).to(device)


@torch.no_grad()
def sample(
    predict_x0: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    schedule: Schedule,
    num_steps: int,
    noise_scale: float = 1.0,
    progress: Progress | None = None,
) -> Tensor:
    """Deterministic few-step sampler: noise at time 1, then DDIM on evenly spaced times down to 0.

    Args:
        predict_x0: (x_t (B, ...), time (B,)) -> x_0 (B, ...).
        noise: (B, ...) where the way starts, from `draw_noise`; everything after it is deterministic.
        schedule: time (B,) -> alpha (B,), sigma (B,), e.g. `DiffusionConfig.alpha_sigma`.
        num_steps: network evaluations, >= 1. One step returns the prediction from the noise itself.
        noise_scale: 1 samples the distribution; 0 starts from zeros, i.e. follows the mean prediction.
        progress: called with (steps done, num_steps) after each step.

    Returns:
        (B, ...) the last x_0 prediction.

    Raises:
        DiffLoRAError: num_steps < 1.
    """
    if num_steps < 1:
        raise DiffLoRAError(f"num_steps is {num_steps}: the sampler needs at least 1 step, 4 to 20 are usual")
    x = x0 = noise_scale * noise  # (B, ...)
    for step in range(num_steps):
        time = torch.full((len(x),), 1 - step / num_steps, device=x.device)  # (B,)
        x0 = predict_x0(x, time)  # (B, ...)
        if step + 1 < num_steps:
            later = torch.full_like(time, 1 - (step + 1) / num_steps)  # (B,)
            x = ddim_step(x, x0, schedule(time), schedule(later))  # (B, ...)
        if progress is not None:
            progress(step + 1, num_steps)
    return x0

"""What ridge regression already knows: a Gaussian over the latent, which the transformer corrects.

Given photos the latent is taken to be normal, with a mean that is linear in the features and a deviation per
number. Then the best guess of x_0 from a noised latent has a closed form, and so has its error. The
transformer puts out what is missing, in units of that error (the idea of EDM's preconditioning, 2206.00364,
with a mean that depends on the photos): untrained it samples as ridge regression with its own uncertainty
would, and it has only the rest to learn. [ours]

Letters: B identities, N photos, F feature width (face and image side by side), T latent tokens, C latent
channels, m photos of many people.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .controls import RidgeRegression
from .diffusion import like


class LatentPrior(NamedTuple):
    """Mean (B, T, C) and deviation (B, T, C) of standardised latents, before any of them is seen."""

    mean: Tensor
    deviation: Tensor

    def posterior(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> LatentPrior:
        """The same after x_t = alpha x_0 + sigma noise was seen.

        With s the deviation: mean + alpha s^2 / v (x_t - alpha mean) and s sigma / sqrt(v), where
        v = alpha^2 s^2 + sigma^2 is the variance of x_t.

        Args:
            x_t: (B, T, C).
            alpha: (B,).
            sigma: (B,), > 0.
        """
        alpha, sigma = like(alpha, x_t), like(sigma, x_t)  # (B, 1, 1)
        variance = (alpha * self.deviation).square() + sigma.square()  # (B, T, C)
        gain = alpha * self.deviation.square() / variance  # (B, T, C)
        mean = self.mean + gain * (x_t - alpha * self.mean)  # (B, T, C)
        return LatentPrior(mean, self.deviation * sigma / variance.sqrt())


def feature_statistics(photos: Tensor, face_width: int) -> tuple[Tensor, Tensor]:
    """Mean (F,) and unit (F,) of features, so that both halves come in with unit variance on average.

    Not every number of them: that would blow up those that say nothing.

    Args:
        photos: (m, F) features of photos of many people.
        face_width: of the F numbers; each half of the features has one unit.
    """
    variance = photos.var(dim=0)  # (F,)
    unit = torch.ones_like(variance)  # (F,)
    for half in (slice(0, face_width), slice(face_width, None)):
        unit[half] = variance[half].mean().sqrt().clamp_min(1e-6)
    return photos.mean(dim=0), unit


class LinearPrior(nn.Module):
    """Features of photos -> `LatentPrior`. An image loss trains the linear map further, nothing else does."""

    def __init__(self, feature_width: int, latent: tuple[int, int]) -> None:
        """Untrained: it knows nothing about anybody, mean 0 and deviation 1."""
        super().__init__()
        self.linear = nn.Linear(feature_width, latent[0] * latent[1])
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("feature_mean", torch.zeros(feature_width))  # (F,)
        self.register_buffer("feature_unit", torch.ones(feature_width))  # (F,)
        self.register_buffer("deviation", torch.ones(latent))  # (T, C)
        self.feature_mean: Tensor
        self.feature_unit: Tensor
        self.deviation: Tensor

    @property
    def is_untrained(self) -> bool:
        """Whether it says the same about everybody."""
        return not bool(self.linear.weight.any())

    @torch.no_grad()
    def fit(
        self,
        photos: Tensor,
        latents: Tensor,
        held_out: tuple[Tensor, Tensor],
        face_width: int,
        regulariser: float,
    ) -> None:
        """Become a ridge regression; its error on held-out people is the deviation.

        Args:
            photos: (m, F) features of photos.
            latents: (m, T, C) of the people on them.
            held_out: the same of other people.
            face_width: see `feature_statistics`.
            regulariser: see `RidgeRegression`.
        """
        mean, unit = feature_statistics(photos, face_width)  # (F,), (F,)
        self.feature_mean.copy_(mean)
        self.feature_unit.copy_(unit)
        ridge = RidgeRegression.fit(self._standardise(photos), latents.flatten(1), regulariser)
        self.linear.weight.copy_(ridge.weights.mT)
        self.linear.bias.copy_(ridge.target_mean - ridge.feature_mean @ ridge.weights)
        error = held_out[1] - self._mean(held_out[0])  # (m', T, C)
        self.deviation.copy_(error.square().mean(dim=0).sqrt())

    def _standardise(self, features: Tensor) -> Tensor:
        """(..., F) -> (..., F)."""
        return (features - self.feature_mean) / self.feature_unit

    def _mean(self, features: Tensor) -> Tensor:
        """(m, F) -> (m, T, C)."""
        return self.linear(self._standardise(features)).unflatten(-1, self.deviation.shape)

    def forward(self, face: Tensor, image: Tensor, mask: Tensor) -> LatentPrior:
        """The prior of B people; see `MixedImageFeatures.forward` for the arguments.

        Photos are averaged. Who has none gets mean 0 and deviation 1, those of standardised latents.
        """
        weight = mask.to(face.dtype)  # (B, N)
        total = weight.sum(dim=1)[:, None, None]  # (B, 1, 1)
        share = weight[..., None] / total.clamp_min(torch.finfo(face.dtype).tiny)  # (B, N, 1)
        features = (torch.cat([face, image], dim=-1) * share).sum(dim=1)  # (B, F)
        known = total > 0  # (B, 1, 1)
        return LatentPrior(
            torch.where(known, self._mean(features), 0.0), torch.where(known, self.deviation, 1.0)
        )

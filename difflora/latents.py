"""The sampled LoRA latent of a person as a thing of its own: kept, blended, decoded later.

Letters: n people to blend, T latent tokens, C latent channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from .errors import DiffLoRAError
from .features import IdentityFeatures, join_features

BlendMode = Literal["spherical", "linear"]
BLEND_MODES: tuple[BlendMode, ...] = get_args(BlendMode)
MAX_ITERATIONS, TOLERANCE = 100, 1e-7
"""Of the spherical mean, which usually takes about five."""


@dataclass(frozen=True, eq=False)
class LoraLatent:
    """A point in the latent space of one LoRA autoencoder.

    Args:
        latent: (T, C), standardised, on the CPU.
        autoencoder: fingerprint of the autoencoder that decodes it.
        features: of whom it is.
        settings: how it was made, as metadata of the LoRA; keys `difflora.*`.
    """

    latent: Tensor
    autoencoder: str
    features: IdentityFeatures
    settings: Mapping[str, str] = field(default_factory=dict)


def blend_latents(
    latents: Sequence[LoraLatent], weights: Sequence[float], mode: BlendMode = "spherical"
) -> LoraLatent:
    """A person between several people.

    "linear" is the weighted mean. It is smaller than the latents that it lies between, so that the blend
    looks like everybody; "spherical" goes along the sphere instead (of two: slerp, Shoemake 1985) and takes
    the weighted mean of the sizes.

    Args:
        latents: n >= 2 latents of one autoencoder.
        weights: n numbers >= 0, not all 0; only their ratios matter. All weight on one gives exactly it.
        mode: see above.

    Returns:
        The latent, with the features of all: everybody's photos, weighted likewise.

    Raises:
        DiffLoRAError: fewer than two, weights that do not fit, or latents of different autoencoders.
    """
    if len(latents) < 2 or len(latents) != len(weights):
        raise DiffLoRAError(
            f"{len(latents)} people with {len(weights)} weights: blending needs at least two people and a "
            "weight for each"
        )
    if mode not in BLEND_MODES:
        raise DiffLoRAError(f"unknown blend {mode!r}: use one of {', '.join(BLEND_MODES)}")
    if not all(math.isfinite(weight) and weight >= 0.0 for weight in weights) or sum(weights) <= 0.0:
        raise DiffLoRAError(f"weights {list(weights)}: use numbers from 0, at least one of them above 0")
    if len({latent.autoencoder for latent in latents}) != 1:
        raise DiffLoRAError(
            "these people come from different DiffLoRA checkpoints, whose latents mean different things: "
            "generate all of them with one checkpoint"
        )
    share = [weight / sum(weights) for weight in weights]
    if 1.0 in share:
        return latents[share.index(1.0)]
    points = torch.stack([latent.latent.float() for latent in latents])  # (n, T, C)
    parts = torch.tensor(share, dtype=torch.float64)  # (n,)
    if mode == "linear":
        mixed = torch.einsum("n,ntc->tc", parts, points.double())  # (T, C)
    else:
        mixed = _spherical_mean(points.double().flatten(1), parts).view_as(points[0])  # (T, C)
    features = join_features([latent.features for latent in latents], share)
    settings = {
        "difflora.blend": mode,
        "difflora.blend_weights": " ".join(f"{part:g}" for part in share),
        "difflora.num_photos": str(len(features)),
    }
    return LoraLatent(mixed.float(), latents[0].autoencoder, features, settings)


def _spherical_mean(points: Tensor, share: Tensor) -> Tensor:
    """Weighted mean on the sphere (Buss & Fillmore 2001, algorithm A1), times the weighted mean length.

    Args:
        points: (n, D).
        share: (n,), sums to 1.

    Returns:
        (D,).
    """
    lengths = points.norm(dim=1)  # (n,)
    if bool((lengths == 0).any()):
        return share @ points
    unit = points / lengths[:, None]  # (n, D)
    mean = share @ unit  # (D,)
    if float(mean.norm()) < TOLERANCE:
        raise DiffLoRAError("these people are exact opposites of each other: use the linear blend")
    mean = mean / mean.norm()
    for _ in range(MAX_ITERATIONS):
        cosine = (unit @ mean).clamp(-1.0, 1.0)  # (n,)
        tangent = unit - cosine[:, None] * mean  # (n, D)
        angle = torch.acos(cosine) / tangent.norm(dim=1).clamp_min(1e-12)  # (n,) angle per tangent length
        step = (share * angle) @ tangent  # (D,)
        size = step.norm()
        if float(size) < TOLERANCE:
            break
        mean = mean * torch.cos(size) + step / size * torch.sin(size)
        mean = mean / mean.norm()
    return mean * (share @ lengths)

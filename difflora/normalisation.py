"""Bring LoRA weights to a common scale: minus a mean per parameter, divided by an RMS per tensor.

Letters: n LoRAs of a library, P parameters of one LoRA.

The mean is what all LoRAs share (their initialisation, the dataset's style): it is most of the "signal" of
raw weights. One RMS per tensor keeps the proportions inside a tensor, which say what matters there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .errors import LayoutError
from .layout import LoraLayout

MIN_RMS = 1e-8  # a tensor that never varies is left unscaled
ROWS_AT_ONCE = 64


class WeightRows(Protocol):
    """Flat weights (n, P): a tensor, or a library that is larger than the memory."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, P)."""

    def split(self, size: int) -> Iterable[Tensor]:
        """Consecutive pieces of at most `size` rows."""


@dataclass(frozen=True, eq=False)
class LoraNormalisation:
    """Statistics of a library.

    Args:
        layout: of the LoRAs.
        mean: (P,) per parameter.
        rms: (tensors of the layout,) root mean square of (weights - mean).

    Raises:
        LayoutError: shapes do not fit the layout, or numbers are not usable.
    """

    layout: LoraLayout
    mean: Tensor
    rms: Tensor

    def __post_init__(self) -> None:
        """Check shapes and values."""
        expected = (self.layout.num_parameters,), (len(self.layout.tensors),)
        if (tuple(self.mean.shape), tuple(self.rms.shape)) != expected:
            raise LayoutError(
                f"normalisation has mean {tuple(self.mean.shape)} and rms {tuple(self.rms.shape)}, the "
                f"layout needs {expected[0]} and {expected[1]}: it belongs to another layout"
            )
        if not bool(self.mean.isfinite().all() and self.rms.isfinite().all() and (self.rms > 0).all()):
            raise LayoutError("normalisation has numbers that are not finite or not positive: fit it again")

    @classmethod
    def fit(cls, flat_weights: WeightRows, layout: LoraLayout) -> "LoraNormalisation":
        """Measure a library (n, P), n >= 2, reading it twice, `ROWS_AT_ONCE` LoRAs at a time.

        Raises:
            LayoutError: fewer than two LoRAs, or another length.
        """
        shape = tuple(flat_weights.shape)
        if len(shape) != 2 or shape[1] != layout.num_parameters or shape[0] < 2:
            raise LayoutError(f"normalisation needs (n >= 2, {layout.num_parameters}) weights, got {shape}")
        mean = torch.zeros(shape[1], dtype=torch.float64)  # (P,)
        for part in flat_weights.split(ROWS_AT_ONCE):
            mean += part.double().sum(dim=0).cpu() / shape[0]
        squares = torch.zeros_like(mean)  # (P,)
        for part in flat_weights.split(ROWS_AT_ONCE):
            squares += (part.double().cpu() - mean).square_().sum(dim=0) / shape[0]
        rms = torch.stack(
            [squares[spec.start : spec.stop].mean().sqrt() for spec in layout.tensors]
        ).float()  # (tensors,)
        return cls(layout, mean.float(), torch.where(rms > MIN_RMS, rms, 1.0))

    @property
    def scale(self) -> Tensor:
        """RMS of every parameter's tensor, (P,)."""
        sizes = torch.tensor([spec.stop - spec.start for spec in self.layout.tensors], device=self.rms.device)
        return self.rms.repeat_interleave(sizes)  # (P,)

    def normalise(self, flat_weights: Tensor) -> Tensor:
        """(..., P) -> (..., P) of about zero mean and unit RMS per tensor."""
        return (flat_weights - self.mean) / self.scale

    def denormalise(self, normalised: Tensor) -> Tensor:
        """Inverse of `normalise`, (..., P) -> (..., P)."""
        return normalised * self.scale + self.mean

    def to(self, device: torch.device | str) -> "LoraNormalisation":
        """The same statistics on a device."""
        return LoraNormalisation(self.layout, self.mean.to(device), self.rms.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint: `mean` and `rms`."""
        return {"mean": self.mean, "rms": self.rms}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], layout: LoraLayout) -> "LoraNormalisation":
        """Inverse of `tensors`.

        Raises:
            LayoutError: a tensor is missing, unexpected or does not fit.
        """
        if set(tensors) != {"mean", "rms"}:
            raise LayoutError(f"normalisation needs the tensors mean and rms, got {sorted(tensors)}")
        return cls(layout, tensors["mean"], tensors["rms"])

"""How far a base model is from the one that a checkpoint was trained on, without keeping its weights.

A generated LoRA is a change of *certain* weights W0. On a fine-tune W of the same family it still works, the
less the further W has moved. The checkpoint keeps K numbers for each adapted matrix, its sketch (Alon, Matias
& Szegedy 1996; count sketch: Charikar, Chen & Farach-Colton 2002):

    s_j = sum over i = j mod K of sigma_i w_i,    sigma_i = +-1 random, the same for every model

It is linear, so ||s(W) - s(W0)||^2 = ||s(W - W0)||^2, and for random signs

    E ||s(d)||^2 = ||d||^2,    Var ||s(d)||^2 = 2 sum_j (e_j^2 - sum_i d_i^4) <= 2 sum_j e_j^2

with e_j = sum over i = j mod K of d_i^2. With even energy that is 2 ||d||^4 / K for one matrix, so for M
matrices together the relative standard error of the squared distance is sqrt(2 / (K M)): 1.6 % for K = 64 and
SD 1.5's 128 attention projections, half of it for the distance itself.

Letters: M modules, K numbers of a sketch, (out, in) one weight.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import LayoutError
from .layout import LoraLayout
from .model_family import adapted_weights

SKETCH_SIZE = 64  # K: 33 KB for SD 1.5's 128 attention projections, 143 KB for SDXL's 560
SIGNS_VERSION = "difflora-signs-1"
FAR = 0.1
"""Relative distance from which users are warned: between two steep fine-tunes that lost likeness. Distance
alone does not decide; slow training went further and lost none (docs/base_fit.md)."""


@dataclass(frozen=True, eq=False)
class BaseSketch:
    """Sketch of the adapted weights of one base model; two tensors in the checkpoint.

    Args:
        projections: (M, K) float32, in the layout's order.
        squared_norms: (M,) ||W||^2 of every matrix, float32, exact.

    Raises:
        LayoutError: other shapes, or numbers that are not finite.
    """

    projections: Tensor
    squared_norms: Tensor

    def __post_init__(self) -> None:
        """Check shapes and values."""
        shapes = tuple(self.projections.shape), tuple(self.squared_norms.shape)
        if self.projections.ndim != 2 or shapes[1] != shapes[0][:1]:
            raise LayoutError(f"a sketch has (M, K) and (M,) numbers, not {shapes[0]} and {shapes[1]}")
        if not bool(self.projections.isfinite().all() and self.squared_norms.isfinite().all()):
            raise LayoutError("the sketch of the base model is not finite: make it again")


@dataclass(frozen=True)
class BaseFit:
    """How well a model fits a checkpoint.

    Args:
        distance: ||W - W0|| / ||W0|| over all adapted weights: 0 is the training base, about 1.4 unrelated.
        standard_error: of the distance, from the sketch.
        base_model: name of the training base.
    """

    distance: float
    standard_error: float
    base_model: str

    @property
    def is_far(self) -> bool:
        """Whether likeness may suffer."""
        return self.distance > FAR

    @property
    def warning(self) -> str | None:
        """One sentence for the user, or None."""
        if not self.is_far:
            return None
        return (
            f"the layers that DiffLoRA changes differ by {self.distance:.0%} from {self.base_model}'s, "
            f"which this checkpoint was trained on: above {FAR:.0%} likeness may suffer, so compare with "
            f"pictures of {self.base_model} itself"
        )


def sketch_base(
    layout: LoraLayout, weights: Mapping[str, Tensor], size: int = SKETCH_SIZE, made_for: str = ""
) -> BaseSketch:
    """Sketch the weights that LoRAs of a layout change.

    Args:
        layout: which weights.
        weights: of the model, as for `adapted_weights`; any dtype and device. Float8 adds some 3 %.
        size: K.
        made_for: name of the training base, for the message.

    Raises:
        LayoutError: the model does not fit the layout.
    """
    projections, norms = [], []
    for module, weight in adapted_weights(layout, weights, made_for).items():
        flat = weight.detach().float().flatten()  # (out * in,)
        signed = flat * random_signs(module, len(flat)).to(flat)  # (out * in,)
        signed = torch.nn.functional.pad(signed, (0, -len(flat) % size))
        projections.append(signed.view(-1, size).sum(dim=0).cpu())  # (K,)
        norms.append(flat.square().sum().cpu())
    return BaseSketch(torch.stack(projections), torch.stack(norms))


def random_signs(name: str, count: int) -> Tensor:
    """+-1 from the bits of SHAKE-128 of a name: the same on every machine and for every version of torch.

    Args:
        name: of the module.
        count: how many.

    Returns:
        (count,) float32.
    """
    stream = hashlib.shake_128(f"{SIGNS_VERSION}/{name}".encode()).digest(math.ceil(count / 8))
    octets = torch.frombuffer(bytearray(stream), dtype=torch.uint8)  # (count / 8,)
    bits = (octets[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1  # (count / 8, 8)
    return bits.flatten()[:count].float() * 2 - 1


def base_fit(
    sketch: BaseSketch, layout: LoraLayout, weights: Mapping[str, Tensor], base_model: str
) -> BaseFit:
    """Compare a model with the training base, before a LoRA is patched into it.

    Args:
        sketch: of the training base.
        layout: of the checkpoint.
        weights: of the model, as for `sketch_base`.
        base_model: name of the training base.

    Returns:
        Distance, its error, and a warning if it is large.

    Raises:
        LayoutError: a model of another family or shape, or a sketch of another layout.
    """
    if len(sketch.squared_norms) != len(layout.modules):
        raise LayoutError(
            f"the sketch has {len(sketch.squared_norms)} modules, the layout {len(layout.modules)}: "
            "make it again"
        )
    own = sketch_base(layout, weights, sketch.projections.shape[1], base_model)
    difference = (own.projections - sketch.projections.cpu()).double()  # (M, K)
    total = float(sketch.squared_norms.double().sum())
    squared = float(difference.square().sum()) / total
    # Var = 2 sum e_j^2, and the fourth power of a sum of many signed numbers is 3 e_j^2 in the mean.
    error = math.sqrt(2 / 3 * float(difference.pow(4).sum())) / total
    distance = math.sqrt(squared)
    return BaseFit(distance, error / (2 * distance) if distance else 0.0, base_model)

"""Which modules a LoRA touches, and how its factors lie in one flat vector.

Letters: M modules, R rank, P parameters of one LoRA (the flat vector).

A LoRA adds `strength * scale * lora_up @ lora_down` to a weight, `scale = alpha / rank`
(Hu et al. 2021, arXiv 2106.09685). The product does not change under (up G^-1, G down): LoRAs trained from
different `lora_down` cannot be compared number by number. By default `lora_down` is therefore ONE frozen
constant of the whole library (`SharedDown`), and the flat vector holds only `lora_up`.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor, nn

from .errors import LayoutError

SharedDown = Mapping[str, Tensor]  # module name -> lora_down (R, in)
Name = TypeVar("Name", str, tuple[str, str])
Factors = Mapping[tuple[str, str], Tensor]  # (module name, "lora_down" | "lora_up") -> (..., *shape)

ATTENTION = tuple(
    f"{attn}.{proj}" for attn in ("attn1", "attn2") for proj in ("to_q", "to_k", "to_v", "to_out.0")
)
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
# Feed-forward layers mattered more for likeness than a higher rank (docs/decisions.md).
ATTENTION_AND_FEED_FORWARD = ATTENTION + FEED_FORWARD

# Row norm of a Kaiming-uniform(a = sqrt 5) matrix, the usual start of lora_down: usual rates carry over.
DOWN_ROW_NORM = 1 / math.sqrt(3)


@dataclass(frozen=True)
class ModuleSpec:
    """One linear layer: its path in the model and the sizes of its weight (out, in)."""

    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class TensorSpec:
    """One factor of one module and its place [start, stop) in the flat vector."""

    module: str
    part: str  # "lora_down" or "lora_up"
    shape: tuple[int, int]
    start: int
    stop: int


@dataclass(frozen=True)
class LoraLayout:
    """Ordered modules and shapes of a LoRA, and the order of its numbers in a flat vector.

    Args:
        modules: the patched linear layers, in the model's own order.
        rank: R, the same for all modules.
        alpha: the LoRA's alpha; `scale = alpha / rank`.
        train_down: whether the flat vector also holds `lora_down` (before `lora_up`, module by module).

    Raises:
        LayoutError: no modules, a name twice, or a rank that the modules cannot have.
    """

    modules: tuple[ModuleSpec, ...]
    rank: int
    alpha: float
    train_down: bool = False

    def __post_init__(self) -> None:
        """Check what the type system cannot."""
        names = [module.name for module in self.modules]
        if not names:
            raise LayoutError("a LoRA layout needs at least one module")
        if len(set(names)) != len(names):
            raise LayoutError(f"module names occur twice: {listing(n for n in names if names.count(n) > 1)}")
        narrowest = min(min(module.in_features, module.out_features) for module in self.modules)
        if not 1 <= self.rank <= narrowest:
            raise LayoutError(
                f"rank {self.rank} is not in 1..{narrowest} (the narrowest module): choose another rank"
            )
        if not (math.isfinite(self.alpha) and self.alpha != 0):
            raise LayoutError(f"alpha {self.alpha} must be finite and not zero")

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        targets: tuple[str, ...] = ATTENTION_AND_FEED_FORWARD,
        rank: int = 4,
        alpha: float | None = None,
        train_down: bool = False,
    ) -> "LoraLayout":
        """Collect the `nn.Linear` modules of a model whose path ends with one of the targets.

        Args:
            model: any model, e.g. a diffusers U-Net.
            targets: ends of module paths, whole path components.
            rank: R >= 1.
            alpha: defaults to the rank, i.e. scale 1.
            train_down: see the class.

        Raises:
            LayoutError: a target matches nothing.
        """
        modules, used = [], set()
        for name, module in model.named_modules():
            matches = {target for target in targets if f".{name}".endswith(f".{target}")}
            if matches and isinstance(module, nn.Linear):
                modules.append(ModuleSpec(name, module.in_features, module.out_features))
                used |= matches
        if unused := [target for target in targets if target not in used]:
            raise LayoutError(
                f"no linear layer of {type(model).__name__} ends with {listing(unused)}: "
                "name targets that the model has, e.g. 'attn1.to_q'"
            )
        return cls(tuple(modules), rank, float(rank if alpha is None else alpha), train_down)

    @property
    def scale(self) -> float:
        """Factor between `lora_up @ lora_down` and the change of the weight: alpha / rank."""
        return self.alpha / self.rank

    @cached_property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The factors in the flat vector, in order."""
        specs: list[TensorSpec] = []
        start = 0
        for module in self.modules:
            parts = {"lora_down": (self.rank, module.in_features)} if self.train_down else {}
            parts["lora_up"] = (module.out_features, self.rank)
            for part, shape in parts.items():
                stop = start + shape[0] * shape[1]
                specs.append(TensorSpec(module.name, part, shape, start, stop))
                start = stop
        return tuple(specs)

    @property
    def num_parameters(self) -> int:
        """P, the length of the flat vector."""
        return self.tensors[-1].stop

    def flatten(self, factors: Factors) -> Tensor:
        """Lay factors out as flat vectors.

        Args:
            factors: (module, part) -> (..., *shape) for every tensor of the layout, and no other.

        Returns:
            Flat weights (..., P).

        Raises:
            LayoutError: a factor is missing, unexpected or of another shape.
        """
        check_shapes({(spec.module, spec.part): spec.shape for spec in self.tensors}, factors)
        return torch.cat(
            [factors[spec.module, spec.part].flatten(-2) for spec in self.tensors], dim=-1
        )  # (..., P)

    def unflatten(self, flat_weights: Tensor) -> dict[tuple[str, str], Tensor]:
        """Inverse of `flatten`, as views. One `split`, so that its backward pass is one concatenation.

        Args:
            flat_weights: (..., P).

        Returns:
            (module, part) -> (..., *shape).

        Raises:
            LayoutError: the vector has another length.
        """
        if flat_weights.ndim < 1 or flat_weights.shape[-1] != self.num_parameters:
            raise LayoutError(
                f"flat weights of shape {tuple(flat_weights.shape)} do not fit a layout of "
                f"{self.num_parameters} numbers: they belong to another rank, other targets or base model"
            )
        pieces = flat_weights.split([spec.stop - spec.start for spec in self.tensors], dim=-1)
        return {
            (spec.module, spec.part): piece.unflatten(-1, spec.shape)  # (..., *shape)
            for spec, piece in zip(self.tensors, pieces, strict=True)
        }

    def factors(
        self, flat_weights: Tensor, shared_down: SharedDown | None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Both factors of every module.

        Args:
            flat_weights: (..., P).
            shared_down: module -> (R, in); not needed, and ignored, with `train_down`.

        Returns:
            module -> (lora_down (R, in) if shared, else (..., R, in); lora_up (..., out, R)).

        Raises:
            LayoutError: wrong length, or a shared `lora_down` is missing or of another shape.
        """
        tensors = self.unflatten(flat_weights)
        if self.train_down:
            return {m.name: (tensors[m.name, "lora_down"], tensors[m.name, "lora_up"]) for m in self.modules}
        if shared_down is None:
            raise LayoutError(
                "this layout keeps lora_down apart: pass the shared_down of its library or checkpoint"
            )
        check_shapes({m.name: (self.rank, m.in_features) for m in self.modules}, shared_down)
        return {m.name: (shared_down[m.name], tensors[m.name, "lora_up"]) for m in self.modules}

    def to_json(self) -> str:
        """Canonical JSON: the same layout always gives the same text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "LoraLayout":
        """Inverse of `to_json`.

        Raises:
            LayoutError: not the JSON of a layout.
        """
        try:
            fields = json.loads(text)
            modules = tuple(ModuleSpec(**module) for module in fields.pop("modules"))
            return cls(modules, **fields)
        except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
            raise LayoutError(
                f"not the description of a LoRA layout ({error}): the file is damaged or newer"
            ) from error

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def init_shared_down(layout: LoraLayout, seed: int = 0) -> dict[str, Tensor]:
    """Random `lora_down` for a whole library: orthogonal rows (no rank is wasted) of the usual norm.

    Args:
        layout: the modules.
        seed: drives a CPU generator, so that every device gives the same numbers.

    Returns:
        module -> (R, in), float32.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        module.name: orthogonal_rows(torch.randn(layout.rank, module.in_features, generator=generator))
        for module in layout.modules
    }


def orthogonal_rows(down: Tensor) -> Tensor:
    """Nearest matrix with orthogonal rows (polar factor U V^T of the SVD), each of norm `DOWN_ROW_NORM`.

    Args:
        down: (R, in), R <= in.

    Returns:
        (R, in), float32.
    """
    u, _, vh = torch.linalg.svd(down.double(), full_matrices=False)  # (R, R), (R, in)
    return (DOWN_ROW_NORM * u @ vh).float()  # (R, in)


def check_shapes(expected: Mapping[Name, tuple[int, int]], tensors: Mapping[Name, Tensor]) -> None:
    """Compare names and last two dimensions.

    Raises:
        LayoutError: lists what is missing, unexpected or of another shape.
    """
    problems = []
    if missing := expected.keys() - tensors.keys():
        problems.append(f"missing {listing(map(str, missing))}")
    if unexpected := tensors.keys() - expected.keys():
        problems.append(f"unexpected {listing(map(str, unexpected))}")
    for name in expected.keys() & tensors.keys():
        if tuple(tensors[name].shape[-2:]) != tuple(expected[name]):
            problems.append(
                f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(expected[name])}"
            )
    if problems:
        raise LayoutError(
            f"LoRA factors do not fit the layout: {listing(problems, separator='; ')}: "
            "use weights made for this base model, these targets and this rank"
        )


def listing(items: Iterable[str], limit: int = 5, separator: str = ", ") -> str:
    """Sorted items as text, the first few and how many more."""
    ordered = sorted(items)
    rest = f"{separator}and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return separator.join(ordered[:limit]) + rest

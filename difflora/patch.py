"""Merge one LoRA into a model, and take it out again exactly."""

from types import TracebackType

import torch
from torch import Tensor, nn

from .errors import LayoutError
from .layout import LoraLayout, listing
from .lora import Lora


class LoraPatch:
    """Handle of an applied LoRA; a context manager that removes it at the end."""

    def __init__(self, replaced: list[tuple[nn.Linear, Tensor, nn.Parameter]]) -> None:
        """Keep (module, original weight, patched weight); made by `apply_lora`."""
        self._replaced = replaced

    def remove(self) -> None:
        """Put the original weights back, bit for bit. A second call does nothing.

        Raises:
            LayoutError: the weights were replaced again in the meantime.
        """
        if any(module.weight is not patched for module, _, patched in self._replaced):
            raise LayoutError(
                "another LoRA was applied later: remove LoRAs in the reverse order of applying them"
            )
        for module, original, patched in self._replaced:
            original.data = original.data.to(patched.device)  # no-op unless the model was moved meanwhile
            module.weight = original
        self._replaced = []

    def __enter__(self) -> "LoraPatch":
        """Nothing to do: the LoRA is applied already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the LoRA, also after an error."""
        self.remove()


def apply_lora(model: nn.Module, lora: Lora, strength: float = 1.0) -> LoraPatch:
    """Merge a LoRA: W + strength * scale * lora_up @ lora_down for every module of its layout.

    The sum is formed in float32 and rounded once to the weight's dtype.
    If something does not fit, nothing changes.

    Args:
        model: contains the modules of the layout as `nn.Linear`.
        lora: the LoRA.
        strength: the user's multiplier; 0 leaves the output as it is, negative values are allowed.

    Returns:
        A handle with `.remove()`; usable in `with`.

    Raises:
        LayoutError: the model lacks a module or a weight has another shape.
    """
    modules = linear_modules(model, lora.layout)
    replaced = []
    with torch.no_grad():
        for name, module in modules.items():
            weight = module.weight  # (out, in)
            down, up = (f.to(weight.device, torch.float32) for f in (lora.down[name], lora.up[name]))
            change: Tensor = strength * lora.layout.scale * up @ down  # (out, in)
            merged = (weight.float() + change).to(weight.dtype)  # (out, in)
            replaced.append((module, weight, nn.Parameter(merged, requires_grad=weight.requires_grad)))
    for module, _, patched in replaced:
        module.weight = patched
    return LoraPatch(replaced)


def linear_modules(model: nn.Module, layout: LoraLayout) -> dict[str, nn.Linear]:
    """Find the modules of a layout in a model.

    Args:
        model: the model to be patched.
        layout: modules and sizes.

    Returns:
        module name -> module, in the layout's order.

    Raises:
        LayoutError: modules are missing, not linear or of another size.
    """
    found = dict(model.named_modules())
    linear: dict[str, nn.Linear] = {}
    problems = []
    for spec in layout.modules:
        module = found.get(spec.name)
        if not isinstance(module, nn.Linear):
            problems.append(f"{spec.name} is {'missing' if module is None else 'a ' + type(module).__name__}")
        elif (module.in_features, module.out_features) != (spec.in_features, spec.out_features):
            sizes = f"{module.in_features} -> {module.out_features}"
            problems.append(f"{spec.name} maps {sizes}, expected {spec.in_features} -> {spec.out_features}")
        else:
            linear[spec.name] = module
    if problems:
        raise LayoutError(
            f"LoRA does not fit {type(model).__name__}: {listing(problems, separator='; ')}: "
            "load the base model that the LoRA was made for"
        )
    return linear

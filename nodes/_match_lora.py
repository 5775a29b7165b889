"""Finds the place of every tensor of a LoRA in a model, or says what does not fit (ComfyUI only logs it)."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from torch import Tensor

from ..difflora.errors import LayoutError

SUFFIXES = (".lora_up.weight", ".lora_down.weight", ".alpha")
SHOWN_PROBLEMS = 3


def match_lora(
    lora: Mapping[str, Tensor], key_map: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """Matches the modules of a LoRA with the weights of a model.

    Args:
        lora: kohya-keyed tensors.
        key_map: LoRA module name -> weight name of the model, or (weight name, (dimension, start, length)).
        shapes: weight name -> shape.

    Returns:
        The part of ``key_map`` that this LoRA uses.

    Raises:
        LayoutError: if a key is unknown, a half is missing, a shape differs or a number is not finite.
    """
    names = sorted({_module_name(key) for key in lora})
    problems = [problem for name in names if (problem := _problem(name, lora, key_map, shapes))]
    if problems or not names:
        more = len(problems) - SHOWN_PROBLEMS
        shown = "; ".join(problems[:SHOWN_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
        raise LayoutError(
            f"this LoRA does not fit this MODEL, nothing was patched: {len(problems)} of {len(names)} "
            f"modules are wrong ({shown or 'it is empty'}). Connect the MODEL that the DiffLoRA "
            f"checkpoint was trained for, or load a checkpoint that was trained for this MODEL"
        )
    return {name: key_map[name] for name in names}


def _module_name(key: str) -> str:
    return next((key.removesuffix(suffix) for suffix in SUFFIXES if key.endswith(suffix)), key)


def _problem(
    name: str, lora: Mapping[str, Tensor], key_map: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> str | None:
    """What is wrong with one module, or None."""
    up, down = lora.get(f"{name}.lora_up.weight"), lora.get(f"{name}.lora_down.weight")
    expected = _target_shape(key_map[name], shapes) if name in key_map else None
    if expected is None:
        return f"{name} is not in this MODEL"
    if up is None or down is None:
        return f"{name} lacks lora_{'up' if up is None else 'down'}"
    shape = (up.shape[0], prod(down.shape[1:]))  # (out, in)
    if shape != expected or prod(up.shape[1:]) != down.shape[0]:
        return f"{name} is {shape[0]} x {shape[1]}, in this MODEL {expected[0]} x {expected[1]}"
    if not (up.isfinite().all() and down.isfinite().all()):
        return f"{name} holds NaN or infinite numbers"
    return None


def _target_shape(
    target: str | tuple[Any, ...], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, int] | None:
    """(out, in) of the matrix that an entry of the key map points at, or None if there is none."""
    name, part = (target, None) if isinstance(target, str) else target[:2]
    shape = list(shapes.get(name, ()))
    if len(shape) < 2:
        return None
    if part is not None:
        dimension, _, length = part
        shape[dimension] = length
    return shape[0], prod(shape[1:])

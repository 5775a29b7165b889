"""Strict patching of the host's MODEL."""

from __future__ import annotations

from collections.abc import Mapping

import comfy.lora
import comfy.model_patcher
from torch import Tensor

from ...difflora.errors import LayoutError
from .._match_lora import match_lora


def apply_lora(
    model: comfy.model_patcher.ModelPatcher, lora: Mapping[str, Tensor], strength: float
) -> comfy.model_patcher.ModelPatcher:
    """A copy of MODEL that is patched with every module of the LoRA; the original is untouched.

    Args:
        model: the host's MODEL.
        lora: kohya-keyed tensors.
        strength: multiplier of the whole LoRA.

    Raises:
        LayoutError: if anything of the LoRA has no place in MODEL; then nothing was patched.
    """
    shapes = {name: tuple(weight.shape) for name, weight in model.model_state_dict().items()}
    modules = match_lora(lora, comfy.lora.model_lora_keys_unet(model.model, {}), shapes)
    patches = comfy.lora.load_lora(dict(lora), modules)
    patched = model.clone()
    accepted = set(patched.add_patches(patches, strength))
    if len(patches) != len(modules) or accepted != set(patches):
        raise LayoutError(
            f"ComfyUI accepted {len(accepted)} of {len(modules)} modules of this LoRA, so the result was "
            f"discarded: please report this with your ComfyUI version"
        )
    return patched

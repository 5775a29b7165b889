"""Strict patching of the host's MODEL and CLIP, for a whole picture or, with hooks, for a part of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.hooks
import comfy.lora
import comfy.model_patcher
import comfy.sd
from torch import Tensor

from ...difflora.block_weights import TEXT_ENCODER_PREFIXES
from ...difflora.errors import DiffLoRAError, LayoutError
from .._match_lora import match_lora


def base_weights(model: comfy.model_patcher.ModelPatcher) -> dict[str, Tensor]:
    """The weights of MODEL as its file has them, without what happens to be patched at the moment."""
    originals = {name: backup.weight for name, backup in model.backup.items()}
    return {**model.model_state_dict(), **originals}


def fit_lora(
    model: comfy.model_patcher.ModelPatcher, lora: Mapping[str, Tensor], clip: comfy.sd.CLIP | None = None
) -> dict[str, Any]:
    """LoRA module name -> its weight in MODEL or CLIP.

    Raises:
        LayoutError: if anything of the LoRA has no place there.
    """
    shapes = {name: tuple(weight.shape) for name, weight in model.model_state_dict().items()}
    key_map = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        encoder = clip.cond_stage_model
        shapes |= {name: tuple(weight.shape) for name, weight in encoder.state_dict().items()}
        key_map |= comfy.lora.model_lora_keys_clip(encoder, {})
    elif any(key.startswith(TEXT_ENCODER_PREFIXES) for key in lora):
        raise LayoutError(
            "this LoRA also has modules of the text encoder, nothing was patched: connect CLIP of the base "
            "model to Apply DiffLoRA"
        )
    return match_lora(lora, key_map, shapes)


def apply_lora(
    model: comfy.model_patcher.ModelPatcher, lora: Mapping[str, Tensor], strength: float
) -> comfy.model_patcher.ModelPatcher:
    """A copy of MODEL that is patched with every module of the LoRA; see ``apply_lora_to_both``."""
    return apply_lora_to_both(model, None, lora, strength)[0]


def apply_lora_to_both(
    model: comfy.model_patcher.ModelPatcher,
    clip: comfy.sd.CLIP | None,
    lora: Mapping[str, Tensor],
    strength: float,
) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP | None]:
    """Copies of MODEL and CLIP that are patched with every module of the LoRA; the originals are untouched.

    Args:
        model: the host's MODEL.
        clip: the host's CLIP; None if the LoRA has no modules of the text encoder.
        lora: kohya-keyed tensors.
        strength: multiplier of the whole LoRA.

    Raises:
        LayoutError: if anything of the LoRA has no place there; then nothing was patched.
    """
    modules = fit_lora(model, lora, clip)
    patches = comfy.lora.load_lora(dict(lora), modules)
    patched, patched_clip = model.clone(), clip.clone() if clip is not None else None
    accepted = set(patched.add_patches(patches, strength))
    if patched_clip is not None:
        accepted |= set(patched_clip.add_patches(patches, strength))
    if len(patches) != len(modules) or accepted != set(patches):
        raise LayoutError(
            f"ComfyUI accepted {len(accepted)} of {len(modules)} modules of this LoRA, so the result was "
            f"discarded: please report this with your ComfyUI version"
        )
    return patched, patched_clip


def lora_hooks(
    model: comfy.model_patcher.ModelPatcher,
    lora: Mapping[str, Tensor],
    strength: float,
    start_percent: float,
    end_percent: float,
    previous: comfy.hooks.HookGroup | None = None,
) -> comfy.hooks.HookGroup:
    """Hooks that patch MODEL with the LoRA only where, and while, a conditioning that carries them counts.

    Args:
        model: what will be sampled with; only used to check that the LoRA fits.
        lora: kohya-keyed tensors.
        strength: multiplier of the whole LoRA.
        start_percent: part of the sampling, 0 .. 1, from which on the LoRA acts.
        end_percent: and until which.
        previous: hooks that the new one joins; they stay as they are.

    Raises:
        LayoutError: if anything of the LoRA has no place in MODEL.
        DiffLoRAError: if the LoRA would never act.
    """
    if start_percent >= end_percent:
        raise DiffLoRAError(
            f"start_percent {start_percent:g} is not before end_percent {end_percent:g}, so the LoRA would "
            f"never act: use 0 and 1 for the whole sampling"
        )
    fit_lora(model, lora)
    hooks = comfy.hooks.create_hook_lora(dict(lora), strength, 0.0)
    hooks.set_keyframes_on_hooks(_keyframes(start_percent, end_percent))
    return hooks if previous is None else previous.clone_and_combine(hooks)


def _keyframes(start_percent: float, end_percent: float) -> comfy.hooks.HookKeyframeGroup:
    """1 between the two, 0 outside; by default a keyframe would last a step even if its time has passed."""
    times = [(0.0, 0.0)] if start_percent > 0 else []
    times.append((start_percent, 1.0))
    if end_percent < 1:
        times.append((end_percent, 0.0))
    keyframes = comfy.hooks.HookKeyframeGroup()
    for percent, strength in times:
        keyframes.add(comfy.hooks.HookKeyframe(strength, percent, guarantee_steps=0))
    return keyframes

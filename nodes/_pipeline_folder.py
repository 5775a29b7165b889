"""Reads a ``StableDiffusionPipeline`` folder without diffusers: files, settings and key names.

ComfyUI users need not install diffusers, so the host's U-Net is built from ``unet/config.json`` and the
weights are renamed. Everything that this translation cannot express is refused rather than ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..difflora.errors import CheckpointError
from ..difflora.files import load_safetensors

# What ComfyUI's UNetModel has built in: another value would load and silently draw something else.
FIXED_UNET_SETTINGS: dict[str, Any] = {
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "act_fn": "silu",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "resnet_time_scale_shift": "default",
    "center_input_sample": False,
    "dual_cross_attention": False,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "class_embed_type": None,
    "addition_embed_type": None,
    "encoder_hid_dim": None,
    "num_attention_heads": None,
    "only_cross_attention": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "time_embedding_type": "positional",
}
BLOCK_HAS_ATTENTION = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
MIRRORED_BLOCK = {"CrossAttnDownBlock2D": "CrossAttnUpBlock2D", "DownBlock2D": "UpBlock2D"}


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """One JSON settings file of a pipeline folder.

    Raises:
        CheckpointError: if the file is missing or is not a JSON object.
    """
    path = folder / name
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}): expected a diffusers pipeline folder "
            f"with unet, text_encoder, tokenizer, vae and scheduler; install the pack again"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: the folder is damaged, install the pack again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds no settings: the folder is damaged, install the pack again")
    return config


def read_weights(folder: Path, name: str) -> dict[str, Tensor]:
    """All tensors of one ``.safetensors`` file of a pipeline folder; ``CheckpointError`` if it is damaged."""
    tensors, _ = load_safetensors(folder / name)
    return tensors


def _per_level(value: int | list[int], levels: int) -> list[int]:
    return [value] * levels if isinstance(value, int) else list(value)


def host_unet_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translates ``unet/config.json`` into the arguments of ComfyUI's ``UNetModel``.

    Args:
        config: settings of a diffusers ``UNet2DConditionModel`` of the SD 1.x / 2.x family, of any size.

    Raises:
        CheckpointError: if the settings describe a network that ComfyUI's U-Net cannot express.
    """

    def refuse(reason: str) -> CheckpointError:
        return CheckpointError(
            f"unet/config.json: {reason}; ComfyUI's U-Net cannot express it, so this base model "
            f"can only be used through diffusers"
        )

    for key, expected in FIXED_UNET_SETTINGS.items():
        if config.get(key, expected) != expected:
            raise refuse(f"{key} is {config[key]!r}, expected {expected!r}")
    down, widths = config["down_block_types"], config["block_out_channels"]
    if any(block not in BLOCK_HAS_ATTENTION for block in down):
        raise refuse(f"down_block_types are {down}")
    if list(config["up_block_types"]) != [MIRRORED_BLOCK[block] for block in reversed(down)]:
        raise refuse(f"up_block_types {config['up_block_types']} do not mirror down_block_types {down}")
    if any(width % widths[0] for width in widths):
        raise refuse(f"block_out_channels {widths} are not multiples of the first")

    levels = len(widths)
    layers = _per_level(config["layers_per_block"], levels)
    depths = _per_level(config.get("transformer_layers_per_block", 1), levels)
    level_depths = [
        depth if BLOCK_HAS_ATTENTION[block] else 0 for block, depth in zip(down, depths, strict=True)
    ]
    heads = config["attention_head_dim"]  # diffusers' historical name: it is the *number* of heads
    if isinstance(heads, int):
        head_settings = {"num_heads": heads, "num_head_channels": -1}
    else:
        channels = {width // count for width, count in zip(widths, heads, strict=True)}
        if len(channels) != 1:
            raise refuse(f"attention_head_dim {heads} gives heads of different widths")
        head_settings = {"num_heads": -1, "num_head_channels": channels.pop()}
    return {
        "image_size": config["sample_size"],
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": layers,
        "transformer_depth": [depth for depth, n in zip(level_depths, layers, strict=True) for _ in range(n)],
        "transformer_depth_output": [
            d for d, n in zip(level_depths, layers, strict=True) for _ in range(n + 1)
        ],
        "transformer_depth_middle": depths[-1],
        "context_dim": config["cross_attention_dim"],
        "use_linear_in_transformer": config.get("use_linear_projection", False),
        "use_spatial_transformer": True,
        "adm_in_channels": None,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        "legacy": False,
        "use_checkpoint": False,
        **head_settings,
    }


def rename_weights(weights: Mapping[str, Tensor], names: Mapping[str, str], part: str) -> dict[str, Tensor]:
    """Renames tensors by a table, and refuses tensors that the table does not know.

    Args:
        weights: tensors by diffusers name.
        names: diffusers name -> host name; may hold more names than the weights.
        part: which part of the pipeline this is, for the message.

    Raises:
        CheckpointError: if a tensor has no host name.
    """
    unknown = sorted(set(weights) - set(names))
    if unknown:
        raise CheckpointError(
            f"{part}: ComfyUI has no place for {len(unknown)} tensors, e.g. {', '.join(unknown[:3])}; "
            f"this base model can only be used through diffusers"
        )
    return {names[name]: tensor for name, tensor in weights.items()}


def host_text_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Text-encoder tensors under ComfyUI's names; transformers 5 leaves out ``text_model.``."""
    prefix = "text_model."
    return {
        name if name.startswith(prefix) else prefix + name: tensor
        for name, tensor in weights.items()
        if not name.endswith("position_ids")
    }

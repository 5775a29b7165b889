"""Folders of diffusers pipelines: which kinds are known, and how one is loaded safely."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .errors import CheckpointError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# Kinds of pipeline, as model_index.json names them, and what has to be said when one is loaded.
PIPELINES: dict[str, dict[str, Any]] = {
    "StableDiffusionPipeline": {"safety_checker": None, "requires_safety_checker": False},
    "StableDiffusionXLPipeline": {"add_watermarker": False},
}
TIME_IDS = 6  # SDXL: original height and width, top and left of the crop, target height and width


def load_pipeline(folder: Path, dtype: torch.dtype) -> DiffusionPipeline:
    """Load a pipeline folder; only safetensors, and nothing from the network.

    Args:
        folder: has ``model_index.json``.
        dtype: of the networks; an autoencoder that overflows in half precision stays in float32.

    Raises:
        CheckpointError: no pipeline, one of another kind, or a part of it is missing or damaged.
    """
    import diffusers

    from . import picture_autoencoder  # noqa: F401 (diffusers only finds components of imported modules)

    kind = pipeline_kind(folder)
    try:
        pipeline = getattr(diffusers, kind).from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            variant=weights_variant(folder / "unet"),
            **PIPELINES[kind],
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the base model {folder} cannot be loaded ({error}): it needs all parts of a {kind}, "
            "their weights as .safetensors; download it again"
        ) from error
    # the weights may lie in half precision; nn.Module's own cast, because diffusers warns about every one
    for network in networks_of(pipeline):
        upcast = dtype == torch.float16 and getattr(network.config, "force_upcast", False)
        nn.Module.to(network, torch.float32 if upcast else dtype)
    return pipeline


def pipeline_kind(folder: Path) -> str:
    """Class of the pipeline in a folder, one of `PIPELINES`.

    Raises:
        CheckpointError: no diffusers folder, or of another kind.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise CheckpointError(
            f"{folder} is no diffusers pipeline (no model_index.json): give the folder that has one"
        )
    try:
        kind = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    except (json.JSONDecodeError, AttributeError) as error:
        raise CheckpointError(f"{index} is damaged ({error}): download the base model again") from error
    if kind not in PIPELINES:
        raise CheckpointError(f"{folder} holds a {kind}: base models are folders of {' or '.join(PIPELINES)}")
    return kind


def weights_variant(folder: Path) -> str | None:
    """None for `x.safetensors`, "fp16" if a folder has only `x.fp16.safetensors`, as SDXL is often kept."""
    names = [file.name for file in folder.glob("*.safetensors")]
    return "fp16" if names and all(".fp16" in name for name in names) else None


def networks_of(pipeline: DiffusionPipeline) -> list[Any]:
    """Denoiser, text encoders and autoencoder of a pipeline."""
    names = ("unet", "text_encoder", "text_encoder_2", "vae")
    return [network for name in names if (network := getattr(pipeline, name, None)) is not None]


def pooled_text_width(name: str, config: Any) -> int:  # noqa: ANN401 (diffusers' configuration)
    """Width of the pooled text that a U-Net adds to its time embedding, 0 if none.

    Raises:
        CheckpointError: it wants to be told something else, or is told the picture's size only.
    """
    kind = getattr(config, "addition_embed_type", None)
    if kind is None:
        return 0
    if kind != "text_time":
        raise CheckpointError(
            f"the denoiser of {name} has addition_embed_type {kind!r}: known are none and 'text_time' (SDXL)"
        )
    return config.projection_class_embeddings_input_dim - TIME_IDS * config.addition_time_embed_dim

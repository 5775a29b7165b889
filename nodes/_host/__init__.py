"""Everything that touches ComfyUI's internals; no other file of the pack does."""

from .drawing import Sampling, draw_candidates
from .files import (
    checkpoint_names,
    checkpoint_path,
    identity_folder,
    identity_names,
    identity_path,
    progress,
    register_model_folder,
)
from .managed import ManagedModel, manage
from .patching import apply_lora
from .pipeline import load_text_encoder, load_unet, load_vae

__all__ = [
    "ManagedModel",
    "Sampling",
    "apply_lora",
    "checkpoint_names",
    "checkpoint_path",
    "draw_candidates",
    "identity_folder",
    "identity_names",
    "identity_path",
    "load_text_encoder",
    "load_unet",
    "load_vae",
    "manage",
    "progress",
    "register_model_folder",
]

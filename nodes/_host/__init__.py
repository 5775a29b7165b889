"""Everything that touches ComfyUI's internals; no other file of the pack does."""

from .facts import host_facts, runs_on_cpu, show_text
from .files import (
    checkpoint_names,
    checkpoint_path,
    face_folders,
    image_encoder_folder,
    progress,
    register_model_folder,
)
from .managed import ManagedModel, manage
from .patching import apply_lora
from .pipeline import load_text_encoder, load_unet, load_vae
from .vision import ClipVisionEncoder

__all__ = [
    "ClipVisionEncoder",
    "ManagedModel",
    "apply_lora",
    "checkpoint_names",
    "checkpoint_path",
    "face_folders",
    "host_facts",
    "image_encoder_folder",
    "load_text_encoder",
    "load_unet",
    "load_vae",
    "manage",
    "progress",
    "register_model_folder",
    "runs_on_cpu",
    "show_text",
]

"""Everything that touches ComfyUI's internals; no other file of the pack does."""

from .drawing import Sampling, draw_candidates
from .facts import host_facts, runs_on_cpu, show_text
from .files import (
    checkpoint_names,
    checkpoint_path,
    face_folders,
    identity_folder,
    identity_names,
    identity_path,
    image_encoder_folders,
    progress,
    register_model_folder,
)
from .lora_files import input_folder, lora_folder, lora_folder_names, lora_name, new_lora_file
from .managed import ManagedModel, manage
from .patching import apply_lora, apply_lora_to_both, base_weights, lora_hooks
from .pipeline import load_text_encoder, load_unet, load_vae
from .vision import ClipVisionEncoder

__all__ = [
    "ClipVisionEncoder",
    "ManagedModel",
    "Sampling",
    "apply_lora",
    "apply_lora_to_both",
    "base_weights",
    "checkpoint_names",
    "checkpoint_path",
    "draw_candidates",
    "face_folders",
    "host_facts",
    "identity_folder",
    "identity_names",
    "identity_path",
    "image_encoder_folders",
    "input_folder",
    "load_text_encoder",
    "load_unet",
    "load_vae",
    "lora_folder",
    "lora_folder_names",
    "lora_hooks",
    "lora_name",
    "manage",
    "new_lora_file",
    "progress",
    "register_model_folder",
    "runs_on_cpu",
    "show_text",
]

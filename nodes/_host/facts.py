"""What the host says about itself, and text on a node."""

from __future__ import annotations

import comfy.model_management
import comfyui_version
import folder_paths
from comfy.cli_args import args

from .files import MODEL_FOLDER, face_folders

SHOWN_FOLDERS = (MODEL_FOLDER, "clip_vision", "loras")


def host_facts() -> dict[str, str]:
    """Topic -> what is so, for a report."""
    device = comfy.model_management.get_torch_device()
    state = comfy.model_management.vram_state.name.lower().replace("_", " ")
    facts = {
        "ComfyUI": comfyui_version.__version__,
        "host device": f"{comfy.model_management.get_torch_device_name(device)}, memory mode {state}",
    }
    if args.cpu:
        facts["host device"] += ", started with --cpu"
    for name in SHOWN_FOLDERS:
        facts[f"models: {name}"] = ", ".join(folder_paths.get_folder_paths(name))
    facts["models: insightface"] = ", ".join(face_folders())
    return facts


def runs_on_cpu() -> bool:
    """Whether the user wants nothing on the GPU."""
    return comfy.model_management.get_torch_device().type == "cpu"


def show_text(text: str, node_id: str | None) -> None:
    """Writes text into a running node, where somebody watches it."""
    from server import PromptServer  # only a running server has a page to write to

    if node_id is not None:
        PromptServer.instance.send_progress_text(text, node_id)

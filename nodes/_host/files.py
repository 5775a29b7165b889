"""The user's model folders, and the running node's progress bar."""

from __future__ import annotations

import os
from collections.abc import Callable

import comfy.model_management
import comfy.utils
import folder_paths

from ...difflora.errors import CheckpointError

MODEL_FOLDER = "difflora"
IDENTITY_FOLDER, IDENTITY_SUBFOLDER = "difflora_identities", "identities"
"""The host's name of the folders with identity files (for ``extra_model_paths.yaml``), and the place of the
first one."""


def register_model_folder() -> None:
    """Makes ``models/difflora`` and ``models/difflora/identities`` known to the host.

    Folders from ``extra_model_paths.yaml`` stay first.
    """
    own = os.path.join(folder_paths.models_dir, MODEL_FOLDER)
    for name, path in ((MODEL_FOLDER, own), (IDENTITY_FOLDER, os.path.join(own, IDENTITY_SUBFOLDER))):
        folder_paths.add_model_folder_path(name, path)
        folders, _ = folder_paths.folder_names_and_paths[name]
        folder_paths.folder_names_and_paths[name] = (folders, {".safetensors"})


def checkpoint_names() -> list[str]:
    """Names of the DiffLoRA checkpoints in the user's model folders; identities lie in a folder below."""
    names = folder_paths.get_filename_list(MODEL_FOLDER)
    return [name for name in names if not name.replace("\\", "/").startswith(f"{IDENTITY_SUBFOLDER}/")]


def checkpoint_path(name: str) -> str:
    """Full path of a checkpoint that ``checkpoint_names`` listed.

    Raises:
        CheckpointError: if it is no longer there.
    """
    path = folder_paths.get_full_path(MODEL_FOLDER, name)
    if path is None:
        folders = ", ".join(folder_paths.get_folder_paths(MODEL_FOLDER))
        raise CheckpointError(
            f"DiffLoRA checkpoint {name!r} not found; looked in {folders}: put the file there and "
            f"press R in ComfyUI to refresh the list"
        )
    return path


def identity_names() -> list[str]:
    """Names of the identity files in the user's folders."""
    return folder_paths.get_filename_list(IDENTITY_FOLDER)


def identity_path(name: str) -> str:
    """Full path of an identity that ``identity_names`` listed.

    Raises:
        CheckpointError: if it is no longer there.
    """
    path = folder_paths.get_full_path(IDENTITY_FOLDER, name)
    if path is None:
        folders = ", ".join(folder_paths.get_folder_paths(IDENTITY_FOLDER))
        raise CheckpointError(
            f"identity {name!r} not found; looked in {folders}: save one with Save Identity, and press R in "
            f"ComfyUI to refresh the list"
        )
    return path


def identity_folder() -> str:
    """Where identities are saved: the first of the user's folders."""
    return folder_paths.get_folder_paths(IDENTITY_FOLDER)[0]


def progress() -> Callable[[int, int], None]:
    """A callback that moves the running node's progress bar and stops the run after Cancel."""
    bar = comfy.utils.ProgressBar(1)

    def step(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return step

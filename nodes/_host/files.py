"""The user's model folders, and the running node's progress bar."""

from __future__ import annotations

import os
from collections.abc import Callable

import comfy.model_management
import comfy.utils
import folder_paths

from ...difflora.errors import CheckpointError
from ...difflora.face_packs import DEFAULT_FOLDERS

MODEL_FOLDER, FACE_FOLDER = "difflora", "insightface"
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
    return _existing_path(MODEL_FOLDER, "DiffLoRA checkpoint", name, "put the file there")


def face_folders() -> list[str]:
    """Folders in which insightface packs may be, the user's own choice first.

    The key ``insightface`` of ``extra_model_paths.yaml``, ``models/insightface``, an ``insightface`` folder
    beside any configured model folder (another ComfyUI's models, say), and insightface's own.
    """
    configured = folder_paths.folder_names_and_paths
    own = configured[FACE_FOLDER][0] if FACE_FOLDER in configured else []
    beside = [
        os.path.join(os.path.dirname(os.path.normpath(folder)), FACE_FOLDER)
        for kind, entry in configured.items()
        if kind != "custom_nodes"
        for folder in entry[0]
    ]
    default = os.path.join(folder_paths.models_dir, FACE_FOLDER)
    return list(dict.fromkeys([*own, default, *filter(os.path.isdir, beside), *DEFAULT_FOLDERS]))


def image_encoder_folders() -> list[str]:
    """Folders in which CLIP vision models may be."""
    return [path for kind in ("clip_vision", MODEL_FOLDER) for path in folder_paths.get_folder_paths(kind)]


def identity_names() -> list[str]:
    """Names of the identity files in the user's folders."""
    return folder_paths.get_filename_list(IDENTITY_FOLDER)


def identity_path(name: str) -> str:
    """Full path of an identity that ``identity_names`` listed.

    Raises:
        CheckpointError: if it is no longer there.
    """
    return _existing_path(IDENTITY_FOLDER, "identity", name, "save one with Save Identity,")


def _existing_path(kind: str, what: str, name: str, advice: str) -> str:
    path = folder_paths.get_full_path(kind, name)
    if path is None:
        folders = ", ".join(folder_paths.get_folder_paths(kind))
        raise CheckpointError(
            f"{what} {name!r} not found; looked in {folders}: {advice} and press R in "
            "ComfyUI to refresh the list"
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

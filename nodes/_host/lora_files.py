"""Where LoRA files go so that every LoRA loader sees them, and where folders of photos lie."""

from __future__ import annotations

import os
from pathlib import Path, PureWindowsPath

import folder_paths

from ...difflora.errors import DiffLoRAError

LORAS = "loras"
SUFFIX = ".safetensors"
FORBIDDEN = set('<>:"|?*')  # Windows refuses them; a folder of LoRAs is often shared or moved


def lora_folder_names() -> list[str]:
    """The LoRA folders of this ComfyUI, ``extra_model_paths.yaml`` included, the preferred one first."""
    return list(_lora_folders())


def _lora_folders() -> dict[str, Path]:
    """Shown name -> folder; those inside of ComfyUI without what differs from machine to machine."""
    base = Path(folder_paths.base_path)
    folders = [Path(os.path.abspath(path)) for path in folder_paths.get_folder_paths(LORAS)]
    return {
        (folder.relative_to(base) if folder.is_relative_to(base) else folder).as_posix(): folder
        for folder in folders
    }


def lora_folder(folder: str, subfolder: str = "") -> Path:
    """Full path of a LoRA folder that ``lora_folder_names`` listed, or of a folder inside of it.

    Raises:
        DiffLoRAError: there is no such folder, or the subfolder is outside of it.
    """
    folders = _lora_folders()
    if folder not in folders:
        raise DiffLoRAError(
            f"{folder!r} is not a LoRA folder of this ComfyUI: choose one of {', '.join(folders)}"
        )
    return folders[folder] / _inside(subfolder, "a subfolder") if subfolder.strip() else folders[folder]


def new_lora_file(folder: str, name: str, as_folder: str = "") -> Path:
    """A path that does not exist yet, with a counter as core's save nodes have it.

    Args:
        folder: one of ``lora_folder_names``.
        name: of the file without counter and suffix; subfolders and core's ``%year%`` and so on are allowed.
        as_folder: name of the file in a folder of its own, which has the counter then; by default no folder.

    Raises:
        DiffLoRAError: the name is empty or leaves the folder.
    """
    wanted = _inside(name.removesuffix(SUFFIX), "a name such as people/anna")
    parent, stem, counter, _, _ = folder_paths.get_save_image_path(str(wanted), str(lora_folder(folder)))
    while True:
        path = Path(parent, f"{stem}_{counter:05}_" if as_folder else f"{stem}_{counter:05}_{SUFFIX}")
        if not path.exists():
            return path / as_folder if as_folder else path
        counter += 1


def lora_name(path: Path, folder: str) -> str:
    """A LoRA file as the LoRA loaders list it."""
    return os.path.relpath(path, lora_folder(folder))


def input_folder(name: str) -> Path:
    """A folder inside of ComfyUI's input folder; it may not exist.

    Raises:
        DiffLoRAError: the name is empty or leaves the input folder.
    """
    return Path(folder_paths.get_input_directory()) / _inside(name, "a folder of ComfyUI's input folder")


def _inside(name: str, expected: str) -> Path:
    """A relative path that stays inside of whatever it is joined to, on every system.

    Raises:
        DiffLoRAError: absolute, with a drive, ``..``, empty or with characters that Windows refuses.
    """
    path = PureWindowsPath(name.strip())  # takes / and \\ for separators, wherever this runs
    unsafe = path.anchor or ".." in path.parts or FORBIDDEN & set(name) or not name.isprintable()
    if unsafe or not path.parts:
        raise DiffLoRAError(
            f"{name!r} is not {expected}: give a relative path without .. and without any of "
            f"{' '.join(sorted(FORBIDDEN))}"
        )
    return Path(*path.parts)

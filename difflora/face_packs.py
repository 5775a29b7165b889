"""Where insightface model packs lie, and which of their files are needed.

A pack is a folder with a detector and a recogniser as ONNX files, and often three more that nobody needs
here. People unpack it into a folder of the same name, keep it below `models/` or not, and leave the archive.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import FaceModelError
from .onnx_header import read_onnx_header

DEFAULT_FOLDERS = ("~/.insightface",)
"""Where the insightface library itself keeps packs: below `models/`."""
MODELS = "models"
NESTED = ("*/*.onnx", "*/*/*.onnx")
"""Below a pack's folder, as archives with folders inside unpack; also below an insightface root."""
MANIFEST, MANIFEST_VERSION = "manifest.json", 2
"""Newer packs say in it which file is what. insightface reads this version and ignores all others."""
PACK_HINT = (
    "give the folder of an insightface model pack with a detector and a recogniser, "
    "such as antelopev2 or buffalo_l (.onnx files, unpacked)"
)
DETECTION, RECOGNITION = "detection", "recognition"
MIN_OUTPUTS_OF_DETECTOR = 5
"""insightface's own rule: SCRFD has 6, 9, 10 or 15 outputs, everything else in a pack one."""
RECOGNISER_SIDE = 112
"""Smallest side of a recogniser's square input; larger ones are multiples of 16. 192 is for landmarks."""
LANDMARK_SIDE = 192


@dataclass(frozen=True)
class FacePack:
    """A model pack on the disk.

    Args:
        name: what insightface and our checkpoints call it.
        folder: absolute, holds the ONNX files.
    """

    name: str
    folder: Path


def find_face_pack(pack: str | Path, folders: Sequence[str | Path] = ()) -> FacePack:
    """Find one pack.

    Args:
        pack: a pack's folder, its parent, an insightface root with one pack; or a name such as "antelopev2".
        folders: where to look for a name: insightface roots (packs in ``models/<name>``) or folders of packs.

    Returns:
        The pack.

    Raises:
        FaceModelError: there is none (the message lists what was searched and found), or several.
    """
    path = Path(pack).expanduser()
    if folders and not path.exists() and path.name == str(pack):
        return _find_by_name(str(pack), folders)
    path = path.resolve()
    if path.is_file():
        what = (
            "a zip archive: unpack it first"
            if zipfile.is_zipfile(path)
            else "a file: give the folder that it is in"
        )
        raise FaceModelError(f"the face pack {path} is {what}")
    if not path.is_dir():
        raise FaceModelError(f"no face pack at {path}: {PACK_HINT}")
    found = _folders_with_models(path)
    if not found:
        archives = ", ".join(file.name for file in sorted(path.glob("**/*.zip")))
        hint = f"unpack {archives} there" if archives else PACK_HINT
        raise FaceModelError(f"the face pack {path} has no .onnx files: {hint}")
    if len(found) > 1:
        names = ", ".join(str(folder.relative_to(path)) for folder in found)
        raise FaceModelError(f"{path} holds several face packs: choose one of {names}")
    return FacePack(found[0].name, found[0])


def search_face_packs(folders: Sequence[str | Path]) -> tuple[FacePack, ...]:
    """Every pack in some folders; of two with one name the first is kept.

    Args:
        folders: insightface roots, folders of packs, or packs; missing ones are passed over.

    Returns:
        Packs in the order of the folders, then by name.
    """
    packs: dict[str, FacePack] = {}
    for place in searched_places(folders):
        for folder in sorted(place.iterdir()) if place.is_dir() else ():
            found = _folders_with_models(folder) if folder.is_dir() and folder.name != MODELS else []
            if len(found) == 1 and _is_pack(found[0]):
                packs.setdefault(folder.name, FacePack(folder.name, found[0]))
    for root in _absolute(folders):  # a configured folder may be a pack itself
        if root.name not in packs and _is_pack(root):
            packs[root.name] = FacePack(root.name, root)
    return tuple(packs.values())


def searched_places(folders: Sequence[str | Path]) -> tuple[Path, ...]:
    """Every path in which ``search_face_packs`` looks for folders of packs, existing or not."""
    return tuple(dict.fromkeys(place for root in _absolute(folders) for place in (root / MODELS, root)))


def pack_files(folder: Path) -> dict[str, Path]:
    """The files of a pack that are needed: "detection" and "recognition", as far as they are there.

    Only the headers of the files are read. Of two files for one task the first by name is taken, as
    insightface does.

    Args:
        folder: that holds ONNX files.

    Raises:
        FaceModelError: a file is damaged.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.onnx")):
        task = _task(path)
        if task is not None:
            files.setdefault(task, path)
    return files


def has_manifest(folder: Path) -> bool:
    """Whether a pack says itself which file is what, in a way that insightface understands."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # absent, unreadable, not JSON
        return False
    return isinstance(manifest, dict) and manifest.get("manifest_version") == MANIFEST_VERSION


def _find_by_name(name: str, folders: Sequence[str | Path]) -> FacePack:
    packs = search_face_packs(folders)
    for pack in packs:
        if pack.name == name:
            return pack
    places = searched_places(folders)
    for place in places:  # there, but not a whole pack: the error of the folder says more than this one's
        if (place / name).is_dir():
            return find_face_pack(place / name)
    archives = [str(place / f"{name}.zip") for place in places if (place / f"{name}.zip").is_file()]
    found = ", ".join(f"{pack.name} ({pack.folder})" for pack in packs) or "none"
    fix = (
        f"unpack {archives[0]} there"
        if archives
        else f"unpack it to {places[0] / name}, so that its .onnx files are in that folder"
    )
    raise FaceModelError(
        f"no face pack {name!r}; searched {', '.join(map(str, places))}; found packs: {found}: {fix}"
    )


def _absolute(folders: Sequence[str | Path]) -> list[Path]:
    return list(dict.fromkeys(Path(folder).expanduser().resolve() for folder in folders))


def _folders_with_models(path: Path) -> list[Path]:
    """The folder itself if it holds ONNX files, else those below it that do."""
    if any(path.glob("*.onnx")):
        return [path]
    return sorted({file.parent for pattern in NESTED for file in path.glob(pattern)})


def _is_pack(folder: Path) -> bool:
    """Whether the folder holds a detector and a recogniser, or would if its files were whole."""
    if has_manifest(folder):
        return True
    try:
        return pack_files(folder).keys() == {DETECTION, RECOGNITION}
    except FaceModelError:
        return True  # loading it says which file is damaged


def _task(path: Path) -> str | None:
    try:
        header = read_onnx_header(path)
    except (ValueError, OSError) as error:
        raise FaceModelError(
            f"the face pack {path.parent} cannot be loaded ({path.name}: {error}): "
            "it needs an intact detector and recogniser as .onnx files; download it again"
        ) from error
    if header.num_outputs >= MIN_OUTPUTS_OF_DETECTOR:
        return DETECTION
    if len(header.inputs) != 1 or len(header.inputs[0]) != 4 or header.num_outputs != 1:
        return None
    height, width = header.inputs[0][2:]
    square = height == width and height >= RECOGNISER_SIDE and height % 16 == 0
    return RECOGNITION if square and height != LANDMARK_SIDE else None

"""The user's own DiffLoRA checkpoints: what each is for, what it needs, and whether that is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import CheckpointError
from .face_packs import search_face_packs, searched_places
from .findings import Finding, Level

if TYPE_CHECKING:
    from .checkpoint import CheckpointFacts

TOPIC = "own checkpoint"
IDENTITIES = "identities"
"""Folder of identity files below the folder of checkpoints."""


def installed_models() -> Path | None:
    """ComfyUI's ``models`` if this package lies in ``custom_nodes`` beside it, else None."""
    pack = Path(__file__).resolve().parents[1]
    models = pack.parents[1] / "models"
    return models if pack.parent.name == "custom_nodes" and models.is_dir() else None


def find_checkpoints(folder: Path) -> list[Path]:
    """Every ``.safetensors`` below a folder (``models/difflora``) that is no identity, by name."""
    paths = sorted(folder.rglob("*.safetensors"))
    return [path for path in paths if IDENTITIES not in path.relative_to(folder).parts]


def check_own_checkpoints(
    checkpoints: Sequence[Path], face_folders: Sequence[str | Path], encoder_folders: Sequence[str | Path]
) -> list[Finding]:
    """A finding for each file; only headers are read.

    Args:
        checkpoints: the files.
        face_folders: where insightface packs are looked for.
        encoder_folders: where CLIP vision models are looked for (``models/clip_vision``).
    """
    if not checkpoints:
        return [Finding("ok", TOPIC, "none: only the built-in one is there")]
    return [_examine(path, face_folders, encoder_folders) for path in checkpoints]


def _examine(
    path: Path, face_folders: Sequence[str | Path], encoder_folders: Sequence[str | Path]
) -> Finding:
    from .checkpoint import inspect_checkpoint  # here, because the doctor is asked when torch is broken too
    from .model import EMBEDDED_FACE_PACKS
    from .model_family import layout_family

    try:
        facts = inspect_checkpoint(path)
    except CheckpointError as error:
        return Finding("problem", TOPIC, str(error))
    what = f"{path.name}: for {facts.base_model} ({layout_family(facts.layout)}), rank {facts.layout.rank}"
    if (EMBEDDED_FACE_PACKS / facts.face_pack).is_dir():
        return Finding("ok", TOPIC, f"{what}; its face models are built in")
    levels, needs, fixes = zip(
        _face_pack(facts, face_folders), _image_encoder(facts, encoder_folders), strict=True
    )
    level: Level = next((level for level in ("problem", "warning") if level in levels), "ok")
    return Finding(level, TOPIC, "; ".join([what, *needs]), "; ".join(filter(None, fixes)))


def _face_pack(facts: CheckpointFacts, folders: Sequence[str | Path]) -> tuple[Level, str, str]:
    """Level, what is so, and the fix."""
    packs = {pack.name: pack.folder for pack in search_face_packs(folders)}
    need = f"face pack {facts.face_pack}"
    if facts.face_pack in packs:
        return "ok", f"{need} in {packs[facts.face_pack]}", ""
    place = searched_places(folders)[0] / facts.face_pack
    return "problem", f"{need} is missing", f"unpack {facts.face_pack}.zip of insightface to {place}"


def _image_encoder(facts: CheckpointFacts, folders: Sequence[str | Path]) -> tuple[Level, str, str]:
    """As above; a user's file may have any name, so one that is not found may be there all the same."""
    from .vision_tower import image_encoder_folder

    need, name = f"image encoder {facts.image_encoder}", facts.image_encoder.rsplit("/", 1)[-1]
    if (folder := image_encoder_folder(facts.image_encoder, folders)) is not None:
        return "ok", f"{need} in {folder}", ""
    for folder in map(Path, folders):
        if (file := folder / f"{name}.safetensors").is_file():
            return "ok", f"{need} is {file}: connect Load CLIP Vision", ""
    fix = f"connect Load CLIP Vision with {facts.image_encoder}, whatever the file's name is"
    if folders:
        fix += f", or put its folder into {folders[0]}"
    return "warning", f"{need} was not found by that name", fix

"""What model browsers show of a LoRA file: a picture, and LoRA Manager's JSON beside it.

Source of the JSON's fields: willmiao/ComfyUI-Lora-Manager, `py/utils/models.py`, `LoraMetadata`.
"""

import base64
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from .files import atomic_save
from .lora_metadata import DESCRIPTION_KEY, STRENGTH_KEY, TITLE_KEY, base_model_names

PREVIEW_SUFFIX = ".png"  # the one that ComfyUI, A1111, LoRA Manager and rgthree all look for
THUMBNAIL_PX = 256  # longer side; readers load the whole header, so it has to stay small


def thumbnail(picture: Image.Image) -> str:
    """Small JPEG of a picture as a data URI, for `modelspec.thumbnail`."""
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def save_preview(weights: Path, picture: Image.Image) -> Path:
    """Write a picture beside a LoRA file, under the file's name."""
    return atomic_save(weights.with_suffix(PREVIEW_SUFFIX), picture.convert("RGB").save)


def save_sidecar(weights: Path, metadata: Mapping[str, str]) -> Path:
    """Write `<name>.metadata.json` beside a LoRA file, which has to be there already.

    Args:
        weights: the LoRA file; a preview beside it is linked.
        metadata: of its header.
    """
    content, preview = weights.read_bytes(), weights.with_suffix(PREVIEW_SUFFIX).resolve()
    base_model = metadata.get("ss_base_model_version", "")
    names = base_model_names(base_model)
    tips = {"strength": float(metadata[STRENGTH_KEY])} if STRENGTH_KEY in metadata else {}
    sidecar = {
        "file_name": weights.stem,
        "model_name": metadata.get(TITLE_KEY, weights.stem),
        "file_path": weights.resolve().as_posix(),
        "size": len(content),
        "modified": weights.stat().st_mtime,
        "sha256": hashlib.sha256(content).hexdigest(),
        "base_model": names.civitai if names else base_model or "Unknown",
        "preview_url": preview.as_posix() if preview.is_file() else "",
        "from_civitai": False,
        "civitai": {"trainedWords": []},  # there is no trigger word
        "modelDescription": metadata.get(DESCRIPTION_KEY, ""),
        "usage_tips": json.dumps(tips),
    }
    text = json.dumps(sidecar, indent=2, ensure_ascii=False)
    return atomic_save(
        weights.with_suffix(".metadata.json"), lambda file: file.write_text(text, encoding="utf-8")
    )

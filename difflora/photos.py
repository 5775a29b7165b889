"""Reference photos: whatever a user has becomes upright 8-bit RGB, or one clear error.

Letters: H, W height and width of a photo; N photos of one person.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from .errors import PhotoError

MIN_PHOTO_PX = 32
"""A face in anything smaller carries no identity."""
OVERSHOOT = 0.1
"""Floats this far outside 0 .. 1 come from resampling filters and are clipped; further away is another
range."""

WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
"""PIL's modes with transparency; colour-table pictures say it elsewhere."""
STRIP_ROWS = 16
"""Rows that are converted at a time: a strip of a large photo then stays in the cache."""

Photo = str | os.PathLike | Image.Image | np.ndarray | torch.Tensor


def load_photo(photo: Photo) -> np.ndarray:
    """Read one photo as upright 8-bit RGB.

    Args:
        photo: a file path, a PIL image, or an array or tensor (H, W), (H, W, channels) or (1, H, W, channels)
            with 1, 3 or 4 channels; uint8 in 0 .. 255, uint16 in 0 .. 65535 or float in 0 .. 1 (a ComfyUI
            IMAGE). EXIF orientation is applied, transparency is laid on white, of an animation the first
            frame is taken.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        PhotoError: it cannot be read, has another shape or range, is not finite, or is under 32 px.
    """
    if isinstance(photo, str | os.PathLike):
        pixels = _from_pil(_open(Path(photo)))
    elif isinstance(photo, Image.Image):
        pixels = _from_pil(photo)
    elif isinstance(photo, torch.Tensor):
        pixels = _from_array(_to_numpy(photo))
    elif isinstance(photo, np.ndarray):
        pixels = _from_array(photo)
    else:
        raise PhotoError(f"a photo is a path, a PIL image, an array or a tensor, not {type(photo).__name__}")
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_PHOTO_PX:
        raise PhotoError(
            f"the photo is {width} x {height} px: use one of at least {MIN_PHOTO_PX} x {MIN_PHOTO_PX} px, "
            "better 512 px or more"
        )
    return pixels


def as_photos(photos: Photo | Sequence[Photo]) -> list[np.ndarray]:
    """Read one photo, several, or a batch.

    Args:
        photos: anything that ``load_photo`` takes, a sequence of such, or a batch (N, H, W, C) as in ComfyUI.

    Returns:
        N arrays (H, W, 3) uint8 RGB; their sizes may differ.

    Raises:
        PhotoError: there is no photo at all, or one is unusable (the message says which).
    """
    if isinstance(photos, torch.Tensor | np.ndarray) and photos.ndim == 4:
        items: list[Photo] = list(photos)
    elif isinstance(photos, str | os.PathLike | Image.Image | torch.Tensor | np.ndarray):
        items = [photos]
    elif isinstance(photos, Sequence):
        items = [part for item in photos for part in _unbatched(item)]
    else:
        raise PhotoError(
            f"photos are a list of paths, PIL images, arrays or tensors, not {type(photos).__name__}"
        )
    if not items:
        raise PhotoError("no photo was given: give at least one photo of the person")
    loaded = []
    for index, item in enumerate(items):
        try:
            loaded.append(load_photo(item))
        except PhotoError as error:
            raise PhotoError(f"photo {index + 1} of {len(items)}: {error}") from error
    return loaded


def to_pixels(pictures: torch.Tensor) -> torch.Tensor:
    """What a base model draws, as 8-bit: (..., 3, H, W) in [-1, 1] -> the same shape, uint8."""
    return ((pictures.detach().float().clamp(-1.0, 1.0) + 1) * 127.5).round().byte()


def as_arrays(pictures: torch.Tensor) -> list[np.ndarray]:
    """Pictures as the face models take photos: (n, 3, H, W) in [-1, 1] -> n arrays (H, W, 3) uint8 RGB."""
    return list(to_pixels(pictures).permute(0, 2, 3, 1).contiguous().cpu().numpy())


def reduce_photo(photo: np.ndarray, factor: int) -> np.ndarray:
    """A smaller photo by averaging squares of pixels.

    Args:
        photo: (H, W, 3) uint8 RGB.
        factor: side of the squares, 1 or more.

    Returns:
        (H / factor, W / factor, 3) uint8, sides rounded up; the photo itself for 1.
    """
    return photo if factor <= 1 else np.asarray(Image.fromarray(photo).reduce(factor))


def centre_square(photo: np.ndarray, size: int) -> torch.Tensor:
    """Centre square of a photo (H, W, 3) uint8, resized: (3, S, S) in [-1, 1]."""
    height, width = photo.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    crop = Image.fromarray(photo[top : top + side, left : left + side])
    pixels = torch.from_numpy(np.array(crop.resize((size, size), Image.Resampling.LANCZOS)))  # (S, S, 3)
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


def _unbatched(photo: Photo) -> list[Photo]:
    if isinstance(photo, torch.Tensor | np.ndarray) and photo.ndim == 4:
        return list(photo)
    return [photo]


def _open(path: Path) -> Image.Image:
    if not path.is_file():
        raise PhotoError(f"no such photo: {path}")
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PIL's ways to say no
        raise PhotoError(
            f"{path} is not a readable picture ({error}): save it again as PNG or JPEG"
        ) from error


def _from_pil(image: Image.Image) -> np.ndarray:
    try:
        image = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise PhotoError(f"the photo cannot be decoded ({error}): save it again as PNG or JPEG") from error
    if image.mode.startswith("I"):  # 16 bit, which PIL may hold as 32-bit integers
        grey = np.asarray(image).astype(np.int64)  # (H, W)
        return _from_array(grey.clip(0, 65535).astype(np.uint16 if grey.max(initial=0) > 255 else np.uint8))
    if image.mode == "F":
        grey = np.asarray(image, dtype=np.float32)  # (H, W), by custom in 0 .. 1 or 0 .. 255
        return _from_array(grey / 255.0 if np.nanmax(grey, initial=0.0) > 1.0 + OVERSHOOT else grey)
    transparent = image.mode in WITH_ALPHA or "transparency" in image.info
    try:
        if image.mode == "La":  # PIL converts premultiplied grey to nothing else
            image = image.convert("LA")
        return _from_array(np.asarray(image.convert("RGBA" if transparent else "RGB")))
    except ValueError as error:
        raise PhotoError(
            f"a photo of the kind {image.mode} cannot be shown as RGB ({error}): save it again as PNG or JPEG"
        ) from error


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()


def _from_array(array: np.ndarray) -> np.ndarray:
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise PhotoError(
            f"a photo has the shape (height, width, 3), not {tuple(array.shape)}: "
            "move the channels last, and give a batch as (photos, height, width, 3)"
        )
    _check_range(array)
    if array.dtype == np.uint8 and array.shape[2] == 4 and array[:, :, 3].min(initial=255) == 255:
        array = array[:, :, :3]  # nothing shows through
    if array.dtype == np.uint8 and array.shape[2] == 3:
        return np.ascontiguousarray(array)
    pixels = np.empty((*array.shape[:2], 3), np.uint8)
    for top in range(0, len(array), STRIP_ROWS):  # 50 megapixels of floats at once would be gigabytes
        pixels[top : top + STRIP_ROWS] = _on_white(_unit_range(array[top : top + STRIP_ROWS]))
    return pixels


def _on_white(unit: np.ndarray) -> np.ndarray:
    """(h, W, 1 | 3 | 4) in 0 .. 1 -> (h, W, 3) or (h, W, 1) in 0 .. 255, rounded; overwrites its input."""
    if unit.shape[2] == 4:
        alpha, unit = unit[:, :, 3:], unit[:, :, :3]  # (h, W, 1), (h, W, 3)
        unit -= 1.0  # colour * alpha + (1 - alpha) = (colour - 1) * alpha + 1
        unit *= alpha
        unit += 1.0
    unit *= 255.0
    return unit.round()


def _unit_range(array: np.ndarray) -> np.ndarray:
    """The same pixels as float32 in 0 .. 1."""
    if array.dtype == np.bool_:
        return array.astype(np.float32)
    if array.dtype in (np.uint8, np.uint16):
        return array.astype(np.float32) / np.float32(np.iinfo(array.dtype).max)
    return array.astype(np.float32).clip(0.0, 1.0)


def _check_range(array: np.ndarray) -> None:
    """Refuse values whose meaning is unclear."""
    if array.dtype in (np.bool_, np.uint8, np.uint16) or not array.size:
        return
    if not np.issubdtype(array.dtype, np.floating):
        raise PhotoError(
            f"photo values of type {array.dtype} are ambiguous: use uint8 (0 .. 255) or float (0 .. 1)"
        )
    low, high = array.min(), array.max()  # NaN anywhere gives NaN
    if not (np.isfinite(low) and np.isfinite(high)):
        raise PhotoError("the photo has NaN or infinite values: check the node or the code that made it")
    if low < -OVERSHOOT or high > 1.0 + OVERSHOOT:
        raise PhotoError(
            f"float photos lie in 0 .. 1, this one in {low:.3g} .. {high:.3g}: "
            "rescale it, or give uint8 for 0 .. 255"
        )

"""Reference photos with a box around every face and the verdict below, as one picture.

Letters: H, W height and width of a photo.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw

from .faces import Face
from .references import References
from .sheet import FAINT, GAP, INK, LABEL_PX, MARGIN, PAPER, font

TILE = 320
"""Pixels of a photo's longer side in the sheet, whatever its own size: so lines and letters stay legible."""
MAX_COLUMNS = 4
TEXT_PX, TEXT_LINE = 14, 19
CHARACTERS = 42
"""Characters of `TEXT_PX` that surely fit below a photo."""
TAKEN, REJECTED, OTHER = (22, 150, 70), (205, 45, 45), (120, 130, 150)
BOX_WIDTH = 3


def draw_references(references: References) -> Image.Image:
    """All photos in a grid: green the face that is used, red one that was rejected, grey the others.

    Args:
        references: from `read_references`.

    Returns:
        RGB image.
    """
    captions = [_caption(references, photo) for photo in range(len(references.photos))]
    tiles = [_tile(references, photo) for photo in range(len(references.photos))]
    tile_height = max(tile.height for tile in tiles)
    columns = min(MAX_COLUMNS, math.ceil(math.sqrt(len(captions))))
    rows = math.ceil(len(captions) / columns)
    text_height = LABEL_PX + 8 + max(len(lines) for _, lines in captions) * TEXT_LINE + GAP
    step_x, step_y = TILE + 2 * GAP, tile_height + text_height + 2 * GAP
    sheet = Image.new("RGB", (2 * MARGIN + columns * step_x, 2 * MARGIN + rows * step_y), PAPER)
    draw = ImageDraw.Draw(sheet)
    for photo, (title, lines) in enumerate(captions):
        x, y = MARGIN + photo % columns * step_x, MARGIN + photo // columns * step_y
        report = references.features.faces[photo]
        tile = tiles[photo]
        sheet.paste(tile, (x + (TILE - tile.width) // 2, y + tile_height - tile.height))
        draw.text((x, y + tile_height + 5), title, TAKEN if report.used else REJECTED, font(LABEL_PX))
        for number, (line, ink) in enumerate(lines):
            place = (x, y + tile_height + LABEL_PX + 11 + number * TEXT_LINE)
            draw.text(place, line, ink, font(TEXT_PX))
    return sheet


def _caption(references: References, photo: int) -> tuple[str, list[tuple[str, tuple[int, int, int]]]]:
    """Title of a photo, and the lines below with their colours."""
    report, quality = references.features.faces[photo], references.qualities[photo]
    weight = references.weight_of(photo)
    counts = f", weight {weight:.2f}" if report.used and references.features.weights is not None else ""
    title = f"photo {photo + 1}: {'used' if report.used else 'not used'}{counts}"
    lines = [(line, INK) for line in textwrap.wrap(report.reason, CHARACTERS)]
    if quality is not None:
        lines += [(line, FAINT) for line in textwrap.wrap(str(quality), CHARACTERS)]
    return title, lines


def _tile(references: References, photo: int) -> Image.Image:
    """One photo at the sheet's scale with its boxes."""
    picture = Image.fromarray(references.photos[photo])
    scale = TILE / max(picture.size)
    size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    tile = picture.resize(size, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(tile)
    report = references.features.faces[photo]
    faces = references.found[photo]
    for index, face in enumerate(faces):
        chosen = face == report.face
        colour = (TAKEN if report.used else REJECTED) if chosen else OTHER
        corners = _inside(face, scale, tile.size)
        draw.rectangle(corners, outline=colour, width=BOX_WIDTH)
        if chosen:
            for x, y in face.landmarks:
                draw.ellipse((x * scale - 3, y * scale - 3, x * scale + 3, y * scale + 3), fill=colour)
        if len(faces) > 1:
            label = str(index)
            width = 9 * len(label) + 8
            draw.rectangle((corners[0], corners[1], corners[0] + width, corners[1] + 20), fill=colour)
            draw.text((corners[0] + 5, corners[1] + 1), label, PAPER, font(LABEL_PX))
    return tile


def _inside(face: Face, scale: float, size: Sequence[int]) -> tuple[float, float, float, float]:
    """The box of a face at the sheet's scale, what lies outside the photo cut off."""
    left, top, right, bottom = (value * scale for value in face.box)
    left, top = min(max(left, 0.0), size[0] - 2.0), min(max(top, 0.0), size[1] - 2.0)
    return left, top, max(min(right, size[0] - 1.0), left + 1), max(min(bottom, size[1] - 1.0), top + 1)

"""Sheets of labelled pictures, drawn with PIL.

Letters: H, W height and width of a picture.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .photos import as_arrays

PAPER, INK, FAINT = (255, 255, 255), (28, 30, 34), (122, 126, 134)
GAP, MARGIN = 6, 14
"""Pixels between pictures, and around the sheet."""
LABEL_PX, DETAIL_PX = 16, 13
LEADING = 5
"""Pixels between lines."""
LINE = DETAIL_PX + LEADING


@dataclass(frozen=True)
class SheetRow:
    """One row of a sheet: a label, fainter lines below it, and a picture (or None) per column."""

    label: str
    pictures: Sequence[Image.Image | None]
    details: Sequence[str] = ()


def to_image(picture: Tensor) -> Image.Image:
    """A picture (3, H, W) in [-1, 1] as 8-bit RGB."""
    return Image.fromarray(as_arrays(picture[None])[0])


def enlarge(image: Image.Image, side: int) -> Image.Image:
    """A square of `side` pixels, smoothly: small pictures shown as hard squares are hard to see as faces."""
    return image.resize((side, side), Image.Resampling.LANCZOS)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """PIL's own font: the same on every machine."""
    return ImageFont.load_default(size)


def draw_grid(
    columns: Sequence[Sequence[str]],
    rows: Sequence[SheetRow],
    side: int = 144,
    label_width: int = 150,
    label_px: int = LABEL_PX,
) -> Image.Image:
    """Rows of pictures with a heading per column and a label per row.

    Args:
        columns: lines of each heading; the first line is the strongest.
        rows: what to show; a row may have fewer pictures than there are columns.
        side: pixels of a picture in the sheet.
        label_width: pixels for the rows' labels.
        label_px: height of the labels' letters; those of the details follow.

    Returns:
        RGB image.
    """
    head = MARGIN + max((len(lines) for lines in columns), default=0) * LINE  # where the pictures begin
    left = MARGIN + label_width
    size = (left + len(columns) * (side + GAP) - GAP + MARGIN, head + len(rows) * (side + GAP) - GAP + MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, lines in enumerate(columns):
        for number, text in enumerate(lines):
            x, y = left + index * (side + GAP), head - (len(lines) - number) * LINE
            draw.text((x + 1, y), text, INK if number == 0 else FAINT, font(DETAIL_PX))
    detail_px = round(label_px * DETAIL_PX / LABEL_PX)
    for index, row in enumerate(rows):
        y = head + index * (side + GAP)
        middle = y + (side - label_px - len(row.details) * (detail_px + LEADING)) // 2
        draw.text((MARGIN, middle), row.label, INK, font(label_px))
        for number, text in enumerate(row.details):
            below = middle + label_px + LEADING + number * (detail_px + LEADING)
            draw.text((MARGIN, below), text, FAINT, font(detail_px))
        for column, picture in enumerate(row.pictures):
            if picture is not None:
                sheet.paste(enlarge(picture, side), (left + column * (side + GAP), y))
    return sheet


def draw_note(text: str, width: int = 420) -> Image.Image:
    """A sentence as a picture, where a picture is expected and there is none.

    Args:
        text: what to say.
        width: pixels of the picture.
    """
    lines = textwrap.wrap(
        text, (width - 2 * MARGIN) * 2 // LABEL_PX
    )  # a letter is about half as wide as high
    note = Image.new("RGB", (width, 2 * MARGIN + len(lines) * (LABEL_PX + 6)), PAPER)
    draw = ImageDraw.Draw(note)
    for number, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + number * (LABEL_PX + 6)), line, INK, font(LABEL_PX))
    return note

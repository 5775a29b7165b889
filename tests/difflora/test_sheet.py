"""Picture sheets: pictures land where the headings say."""

import numpy as np
import torch
from PIL import Image

from difflora.sheet import GAP, MARGIN, SheetRow, draw_grid, draw_note, to_image


def test_to_image_maps_the_ends_of_the_range():
    picture = torch.stack([torch.full((2, 2), -1.0), torch.zeros(2, 2), torch.full((2, 2), 1.0)])
    assert to_image(picture).getpixel((0, 0)) == (0, 128, 255)


def test_grid_places_rows_and_columns():
    red, blue = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    rows = [SheetRow("a", [red, blue]), SheetRow("b", [None, red], ["detail"])]
    sheet = draw_grid([["one"], ["two", "lines"]], rows, side=40, label_width=60)
    left, bottom = MARGIN + 60 + 20, sheet.height - MARGIN - 20
    assert sheet.getpixel((left, bottom - 40 - GAP)) == (255, 0, 0)
    assert sheet.getpixel((left + 40 + GAP, bottom - 40 - GAP)) == (0, 0, 255)
    assert sheet.getpixel((left, bottom)) == (255, 255, 255)
    assert sheet.getpixel((left + 40 + GAP, bottom)) == (255, 0, 0)


def test_a_note_is_as_high_as_its_text() -> None:
    short, long = draw_note("One word."), draw_note("One word. " * 20)
    assert short.width == long.width and long.height > 2 * short.height
    assert np.asarray(long).min() < 60  # there is ink

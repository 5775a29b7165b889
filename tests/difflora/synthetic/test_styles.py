"""Sepia prints and pencil sketches of rendered people."""

import torch

from difflora.synthetic.people import sample_people
from difflora.synthetic.renderer import render
from difflora.synthetic.scenes import ATTRIBUTES, sample_scenes
from difflora.synthetic.styles import SEPIA, STYLES, brightness, in_style, sepia, sketch

PICTURES = render(sample_people("train", 0, 6), sample_scenes(6, seed=1), 128).pictures


def test_there_is_a_style_for_every_phrase() -> None:
    assert len(STYLES) == len(ATTRIBUTES["style"])


def test_colour_photos_stay_and_styles_are_drawn_one_by_one() -> None:
    style = torch.tensor([0, 1, 2, 0, 2, 1])
    drawn = in_style(PICTURES, style)
    assert torch.equal(drawn[style == 0], PICTURES[style == 0])
    torch.testing.assert_close(drawn[style == 1], sepia(PICTURES[style == 1]))
    torch.testing.assert_close(drawn[style == 2], sketch(PICTURES[style == 2]))
    assert 0 <= drawn.min() and drawn.max() <= 1


def test_a_sepia_print_has_one_hue_and_keeps_what_is_brighter() -> None:
    printed = sepia(PICTURES)
    grey, toned = brightness(PICTURES).flatten(), brightness(printed).flatten()
    order = grey.argsort()
    assert (toned[order].diff() > -1e-5).all()
    ends = torch.tensor([SEPIA[0], SEPIA[-1]])
    black_and_white = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 3, 4, 4)
    torch.testing.assert_close(sepia(black_and_white)[:, :, 0, 0], ends)


def test_a_sketch_is_mostly_paper_with_dark_lines_at_edges() -> None:
    drawn = brightness(sketch(PICTURES))
    assert drawn.median() > 0.75 and drawn.min() < 0.4
    flat = torch.full((1, 3, 32, 32), 0.5)
    assert sketch(flat).var(dim=(2, 3)).max() < 1e-8  # nothing to draw
    flat[..., 16:] = 0.9
    row = brightness(sketch(flat))[0, 0, 16]
    assert row[15] < row[2] - 0.1 and row[31] >= row[2]


def test_a_sketch_looks_alike_at_any_size() -> None:
    large = torch.nn.functional.interpolate(PICTURES, scale_factor=2, mode="bilinear")
    small = torch.nn.functional.avg_pool2d(sketch(large), 2)
    assert (small - sketch(PICTURES)).abs().mean() < 0.02

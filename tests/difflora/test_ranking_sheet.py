"""The picture and the text of a ranking: best first."""

import numpy as np
import pytest
import torch

from difflora.candidates import Ranking
from difflora.ranking_sheet import LABEL_WIDTH, TILE, describe_ranking, draw_ranking
from difflora.sheet import GAP, MARGIN

SIMILARITY = torch.tensor([[0.2, 0.9, 0.5]])


def ranking(first_seed: int = 7) -> Ranking:
    """Candidate i has pictures of grey 60 * (i + 1)."""
    greys = torch.tensor([60, 120, 180], dtype=torch.uint8)
    pictures = greys[None, :, None, None, None, None].expand(1, 3, 2, 3, 8, 8)
    return Ranking(tuple(range(first_seed, first_seed + 3)), 1.0, torch.zeros(1, 3, 5), SIMILARITY, pictures)


def test_the_best_is_on_top() -> None:
    sheet = np.array(draw_ranking(ranking()))
    column = sheet[:, sheet.shape[1] - TILE // 2, 0]  # through the last picture of every row
    shown = [int(grey) for grey in dict.fromkeys(column.tolist()) if grey != 255]
    assert shown == [120, 180, 60]
    assert sheet.shape[0] > 3 * TILE


@pytest.mark.parametrize("seed", [7, 2**64 - 4], ids=["short", "as the web page draws them"])
def test_labels_stay_legible_when_a_node_shows_the_sheet_at_half_its_size(seed: int) -> None:
    labels = np.array(draw_ranking(ranking(seed)))[:, : MARGIN + LABEL_WIDTH, 0]
    inked = (labels < 160).any(axis=1)  # rows of pixels
    first = int(inked.argmax())
    height = int((~inked[first:]).argmax())  # of the first line's digits
    assert height / 2 >= 12
    assert not (labels < 160)[:, -GAP:].any()  # nothing runs under the picture


def test_the_text_says_the_same() -> None:
    assert describe_ranking(ranking()).splitlines() == [
        "1. likeness 0.900, seed 8",
        "2. likeness 0.500, seed 9",
        "3. likeness 0.200, seed 7",
    ]

"""The picture and the text of a ranking: best first."""

import numpy as np
import torch

from difflora.candidates import Ranking
from difflora.ranking_sheet import TILE, describe_ranking, draw_ranking

SIMILARITY = torch.tensor([[0.2, 0.9, 0.5]])


def ranking() -> Ranking:
    """Candidate i has pictures of grey 60 * (i + 1)."""
    greys = torch.tensor([60, 120, 180], dtype=torch.uint8)
    pictures = greys[None, :, None, None, None, None].expand(1, 3, 2, 3, 8, 8)
    return Ranking((7, 8, 9), 1.0, torch.zeros(1, 3, 5), SIMILARITY, pictures)


def test_the_best_is_on_top() -> None:
    sheet = np.array(draw_ranking(ranking()))
    column = sheet[:, sheet.shape[1] - TILE // 2, 0]  # through the last picture of every row
    shown = [int(grey) for grey in dict.fromkeys(column.tolist()) if grey != 255]
    assert shown == [120, 180, 60]
    assert sheet.shape[0] > 3 * TILE


def test_the_text_says_the_same() -> None:
    assert describe_ranking(ranking()).splitlines() == [
        "1. likeness 0.900, seed 8",
        "2. likeness 0.500, seed 9",
        "3. likeness 0.200, seed 7",
    ]

"""The ranking of candidates as one picture: best first, with similarity and seed.

Letters: n candidates, K pictures of each, H, W size of a picture.
"""

from __future__ import annotations

import textwrap

from PIL import Image

from .candidates import Ranking
from .sheet import SheetRow, draw_grid

SHOWN_PICTURES = 4
TILE, LABEL_WIDTH = 160, 196
LETTER_PX = 36
"""A node of the usual size shows eight rows at half of their size or less."""
SEED_CHARACTERS = 11
"""That fit into a line; random seeds have up to twenty."""


def draw_ranking(ranking: Ranking, person: int = 0) -> Image.Image:
    """A row per candidate of one person, the best on top: place, likeness, seed and its first pictures.

    Args:
        ranking: from `rank_candidates`.
        person: index.

    Returns:
        RGB image.
    """
    similarity = ranking.similarity[person]  # (n,)
    rows = []
    for place, index in enumerate(similarity.argsort(descending=True).tolist()):
        drawn = (
            ranking.pictures[person, index, :SHOWN_PICTURES].permute(0, 2, 3, 1).contiguous()
        )  # (k, H, W, 3)
        pictures = [Image.fromarray(picture) for picture in drawn.numpy()]
        details = textwrap.wrap(f"seed {ranking.seeds[index]}", SEED_CHARACTERS)
        details += ["taken"] if place == 0 else []
        rows.append(SheetRow(f"{place + 1}.  {float(similarity[index]):.3f}", pictures, details))
    columns: list[list[str]] = [[] for _ in range(min(SHOWN_PICTURES, ranking.pictures.shape[2]))]
    return draw_grid(columns, rows, TILE, LABEL_WIDTH, LETTER_PX)


def describe_ranking(ranking: Ranking, person: int = 0) -> str:
    """A line per candidate of one person, the best first."""
    similarity = ranking.similarity[person]  # (n,)
    return "\n".join(
        f"{place + 1}. likeness {float(similarity[index]):.3f}, seed {ranking.seeds[index]}"
        for place, index in enumerate(similarity.argsort(descending=True).tolist())
    )

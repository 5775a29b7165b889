"""How much pictures look like a person, by the face pack that conditions.

Measure a method by another recogniser: this one was used to make the LoRA.

Letters: n pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .diffusion import Progress
from .errors import NoFaceError
from .faces import FaceAnalyzer
from .features import IdentityFeatures
from .photos import Photo, as_photos

FACE_WIDTH = 512
"""The width of every insightface recogniser."""
PROGRESS_STEP = 4
"""Pictures between two reports: about a second on a busy CPU."""


@dataclass(frozen=True, eq=False)
class Likeness:
    """Similarity of pictures to a person.

    Args:
        similarity: (n,) cosine to the mean of the reference photos, 0 where no face was found.
        found: (n,) bool, whether there is a face.
    """

    similarity: Tensor
    found: Tensor

    @property
    def mean(self) -> float:
        """Over all pictures, those without a face included."""
        return float(self.similarity.mean())

    def report(self) -> str:
        """Lines for the user."""
        count, missing = len(self.found), int((~self.found).sum())
        lines = [f"similarity {self.mean:.3f}: mean of {count} picture{'s' if count > 1 else ''}"]
        if missing:
            lines.append(f"no face found in {missing} of {count}, counted as 0")
        for index, (value, seen) in enumerate(
            zip(self.similarity.tolist(), self.found.tolist(), strict=True)
        ):
            lines.append(f"picture {index + 1}: " + (f"{value:.3f}" if seen else "0, no face found"))
        return "\n".join(lines)


def measure_likeness(
    face_analyzer: FaceAnalyzer,
    features: IdentityFeatures,
    pictures: Photo | Sequence[Photo],
    progress: Progress | None = None,
) -> Likeness:
    """Compare pictures with a person.

    Args:
        face_analyzer: the pack that read the features.
        features: of the person.
        pictures: n pictures, see `as_photos`; of several faces the largest counts.
        progress: called with (pictures done, n); raise from it to stop.

    Raises:
        PhotoError: a picture is unusable, e.g. smaller than 32 px.
    """
    embedding, found = face_embeddings(face_analyzer, as_photos(pictures), progress)  # (n, 512), (n,)
    return Likeness(embedding @ features.mean_face.cpu(), found)


def face_embeddings(
    face_analyzer: FaceAnalyzer, pictures: Sequence[np.ndarray], progress: Progress | None = None
) -> tuple[Tensor, Tensor]:
    """Embeddings of the largest face of each picture.

    Args:
        face_analyzer: finds and embeds faces.
        pictures: n arrays (H, W, 3) uint8 RGB.
        progress: called with (pictures done, n).

    Returns:
        (n, 512) unit rows, zero where no face is found, and (n,) bool whether one is.
    """
    embeddings = torch.zeros(len(pictures), FACE_WIDTH)
    found = torch.zeros(len(pictures), dtype=torch.bool)
    step = max(len(pictures), 1) if progress is None else PROGRESS_STEP
    for start in range(0, len(pictures), step):
        part = pictures[start : start + step]
        try:
            rows, reports = face_analyzer.analyze(part, on_missing="skip")
        except NoFaceError:  # in none of them
            rows, reports = embeddings[:0], ()
        used = [start + report.photo for report in reports if report.used]
        embeddings[used] = rows
        found[used] = True
        if progress is not None:
            progress(start + len(part), len(pictures))
    return embeddings, found

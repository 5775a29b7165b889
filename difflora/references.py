"""Reference photos -> features, with a verdict on every photo: which face, how good, the same person or not.

Letters: N photos given, F of them with a chosen face, S side of a crop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from .diffusion import Progress
from .errors import DiffLoRAError, NoFaceError
from .face_quality import FaceQuality, measure_quality, quality_weight
from .faces import Face, FaceAnalyzer, FaceReport, OnMissing
from .features import IdentityFeatures, ImageFeatureEncoder, crop_face
from .photos import Photo, as_photos

FaceOrder = Literal["largest", "left to right", "highest score", "most like the example"]
FACE_ORDERS: tuple[FaceOrder, ...] = get_args(FaceOrder)
OUTLIER_RATIO = 0.5
"""A photo is somebody else's if its mean similarity to the others is below this part of the mean similarity
among the others. Found 39 of 40 strangers among 3 - 6 photos of rendered people and rejected none of 120 sets
without one (validation people); .3 found 35, .6 no more than .5."""
MIN_FOR_OUTLIERS = 3
"""Of two photos nobody can say which one is wrong."""
DOUBTFUL = 0.25
"""Mean similarity of the used photos below which the report asks whether they show one person; recognisers'
usual thresholds lie about there."""
CROP_PX = 224
"""Side of the crops that are shown."""


@dataclass(frozen=True, eq=False)
class PhotoChoice:
    """How photos are read.

    Args:
        face: in which order the faces of a photo are counted.
        index: which of them is taken, from 0.
        example: photo of the wanted person, for "most like the example" (its largest face).
        on_missing: what to do with a photo without that face: "error" or "skip".
        outlier_ratio: see `OUTLIER_RATIO`; 0 keeps every photo.
        by_quality: whether better photos count more, see `face_quality.quality_weight`; else all alike.
    """

    face: FaceOrder = "largest"
    index: int = 0
    example: Photo | None = None
    on_missing: OnMissing = "error"
    outlier_ratio: float = OUTLIER_RATIO
    by_quality: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.face not in FACE_ORDERS:
            raise DiffLoRAError(f"unknown order of faces {self.face!r}: use one of {', '.join(FACE_ORDERS)}")
        if self.index < 0 or not 0.0 <= self.outlier_ratio <= 1.0:
            raise DiffLoRAError(
                f"face index {self.index} with outlier ratio {self.outlier_ratio:g}: the index counts from "
                "0, and the ratio lies in 0 .. 1"
            )
        if self.face == "most like the example" and self.example is None:
            raise DiffLoRAError("there is no example: give a photo of the wanted person, or another order")


@dataclass(frozen=True, eq=False)
class References:
    """What was read from the photos of one person.

    Args:
        features: of the used photos; their `faces` have a report for each of the N photos.
        photos: N arrays (H, W, 3) uint8 RGB.
        found: the faces of each photo, in the order asked for.
        qualities: of the chosen face of each photo, None without one.
        similarity: (N, N) cosine between the chosen faces, NaN without one.
        crops: aligned face of each used photo, (CROP_PX, CROP_PX, 3) uint8 RGB.
    """

    features: IdentityFeatures
    photos: tuple[np.ndarray, ...]
    found: tuple[tuple[Face, ...], ...]
    qualities: tuple[FaceQuality | None, ...]
    similarity: Tensor
    crops: tuple[np.ndarray, ...]

    def weight_of(self, photo: int) -> float:
        """How many times a photo counts; 0 if it is not used."""
        used = [report.photo for report in self.features.faces if report.used]
        if photo not in used:
            return 0.0
        return 1.0 if self.features.weights is None else float(self.features.weights[used.index(photo)])

    def verdict(self, photo: int) -> str:
        """'used' or 'not used', and why."""
        report = self.features.faces[photo]
        weight = "" if self.features.weights is None else f" with weight {self.weight_of(photo):.2f}"
        return f"used{weight}, {report.reason}" if report.used else f"not used, {report.reason}"

    def report(self) -> str:
        """Lines for the user: every photo, then who looks like whom."""
        count = len(self.photos)
        lines = []
        for photo, quality in enumerate(self.qualities):
            measures = f" ({quality})" if quality is not None else ""
            lines.append(f"photo {photo + 1} of {count}: {self.verdict(photo)}{measures}")
        if count > 1:
            lines += ["", "similarity of the faces (1 is the same picture):"]
            lines.append("        " + "".join(f"{column + 1:>7}" for column in range(count)))
            for row, values in enumerate(self.similarity.tolist()):
                cells = "".join("      -" if value != value else f"{value:7.2f}" for value in values)
                lines.append(f"photo {row + 1:<2}{cells}")
        if doubt := self.doubt():
            lines += ["", doubt]
        return "\n".join(lines)

    def doubt(self) -> str:
        """A sentence if the used photos may show different people, else nothing."""
        used = [report.photo for report in self.features.faces if report.used]
        if len(used) < 2:
            return ""
        mean = mean_similarity(self.similarity[used][:, used])
        if mean >= DOUBTFUL:
            return ""
        return (
            f"Do these photos show one person? The used faces have a mean similarity of only {mean:.2f}. "
            "Look at the picture with the boxes, and leave out photos of anybody else."
        )


def read_references(
    photos: Photo | Sequence[Photo],
    face_analyzer: FaceAnalyzer,
    image_encoder: ImageFeatureEncoder,
    choice: PhotoChoice | None = None,
    progress: Progress | None = None,
) -> References:
    """Choose a face in every photo, judge the photos, and read the features of the good ones.

    Args:
        photos: N photos of one person, see `as_photos`.
        face_analyzer: finds and embeds faces.
        image_encoder: encodes the surroundings of each face.
        choice: by default the largest face, and photos of somebody else are left out.
        progress: called with (photos searched, N); raise from it to stop.

    Returns:
        Features of the used photos and what there is to say about all of them.

    Raises:
        PhotoError: a photo is unusable.
        NoFaceError: a photo lacks the wanted face (or, with "skip", all do).
    """
    choice = choice or PhotoChoice()
    loaded = as_photos(photos)
    sort = _sorter(choice, face_analyzer)
    found, reports = [], []
    for index, photo in enumerate(loaded):
        faces = sort(photo, face_analyzer.detect(photo))
        report = _choose(index, len(loaded), faces, choice)
        found.append(tuple(faces))
        reports.append(report)
        if progress is not None:
            progress(index + 1, len(loaded))
    chosen = [report.photo for report in reports if report.face is not None]
    if not chosen:
        raise NoFaceError(
            f"none of {len(loaded)} photos shows the wanted face: use sharp, front-facing photos in which "
            "nothing covers the face"
        )
    landmarks = np.array([reports[photo].face.landmarks for photo in chosen])  # type: ignore[union-attr]
    embedding = face_analyzer.embed([loaded[photo] for photo in chosen], landmarks)  # (F, 512)
    similarity = torch.full((len(loaded), len(loaded)), float("nan"))
    similarity[np.ix_(chosen, chosen)] = (embedding @ embedding.T).clamp(-1.0, 1.0)  # (F, F)
    outliers = find_outliers(embedding @ embedding.T, choice.outlier_ratio)
    for place, (own, rest) in outliers.items():
        old = reports[chosen[place]]
        reason = (
            f"looks like another person: similarity {own:.2f} to the other photos, which have {rest:.2f} "
            "among themselves"
        )
        reports[old.photo] = FaceReport(old.photo, False, reason, old.num_faces, old.face)
    kept = [place for place in range(len(chosen)) if place not in outliers]
    used = [reports[chosen[place]] for place in kept]
    qualities = tuple(
        None if report.face is None else measure_quality(loaded[report.photo], report.face, face_analyzer)
        for report in reports
    )
    features = IdentityFeatures(
        embedding[kept],
        image_encoder.encode([crop_face(loaded[r.photo], r.face) for r in used if r.face is not None]),
        tuple(reports),
        _weights([q for r in used if (q := qualities[r.photo])]) if choice.by_quality else None,
    )
    crops = tuple(
        face_analyzer.align(loaded[r.photo], r.face.landmarks, CROP_PX) for r in used if r.face is not None
    )
    return References(features, tuple(loaded), tuple(found), qualities, similarity, crops)


def mean_similarity(similarity: Tensor) -> float:
    """Mean of the cosines (F, F) between different photos."""
    count = len(similarity)
    return float((similarity.sum() - similarity.trace()) / (count * (count - 1)))


def find_outliers(similarity: Tensor, ratio: float = OUTLIER_RATIO) -> dict[int, tuple[float, float]]:
    """Photos that show somebody else than most: the least similar one is taken out, again and again.

    Args:
        similarity: (F, F) cosines of the faces.
        ratio: see `OUTLIER_RATIO`.

    Returns:
        Index of each outlier -> its mean similarity to the others, and theirs among themselves. Empty with
        fewer than `MIN_FOR_OUTLIERS` photos, or if nothing stands out from a group that belongs together.
    """
    left = list(range(len(similarity)))
    outliers: dict[int, tuple[float, float]] = {}
    while ratio > 0.0 and len(left) >= MIN_FOR_OUTLIERS:
        worst = min(left, key=lambda i: sum(float(similarity[i, j]) for j in left if j != i))
        others = [i for i in left if i != worst]
        own = float(similarity[worst, others].mean())
        rest = mean_similarity(similarity[others][:, others])
        if rest <= 0.0 or own >= ratio * rest:
            break
        outliers[worst] = (own, rest)
        left = others
    return outliers


def _weights(qualities: Sequence[FaceQuality]) -> Tensor:
    """(F,) weights whose mean is 1."""
    sharpest = max(quality.sharpness for quality in qualities)
    weights = torch.tensor([quality_weight(quality, sharpest) for quality in qualities])  # (F,)
    return weights / weights.mean()


def _sorter(
    choice: PhotoChoice, face_analyzer: FaceAnalyzer
) -> Callable[[np.ndarray, list[Face]], list[Face]]:
    """Function (photo, its faces) -> the faces in the order asked for."""
    if choice.face == "most like the example" and choice.example is not None:
        try:
            wanted = face_analyzer.analyze(as_photos(choice.example)[:1])[0][0]  # (512,)
        except NoFaceError as error:
            raise NoFaceError(
                "no face found in the example: use a sharp, front-facing photo of the person"
            ) from error

        def by_likeness(photo: np.ndarray, faces: list[Face]) -> list[Face]:
            if len(faces) < 2:
                return faces
            points = np.array([face.landmarks for face in faces])  # (faces, 5, 2)
            likeness = face_analyzer.embed([photo] * len(faces), points) @ wanted  # (faces,)
            return [faces[i] for i in likeness.argsort(descending=True).tolist()]

        return by_likeness
    keys: dict[str, Callable[[Face], float]] = {
        "largest": lambda face: -face.area,
        "left to right": lambda face: face.box[0] + face.box[2],
        "highest score": lambda face: -face.score,
    }
    return lambda photo, faces: sorted(faces, key=keys[choice.face])


def _choose(index: int, count: int, faces: Sequence[Face], choice: PhotoChoice) -> FaceReport:
    """The report of one photo, or an error if it must not lack the face."""
    if choice.index < len(faces):
        if len(faces) == 1:
            reason = "one face found"
        elif choice.index == 0 and choice.face != "left to right":
            taken = {"largest": "the largest", "highest score": "the surest"}.get(choice.face, choice.face)
            reason = f"{len(faces)} faces found, {taken} was taken"
        else:
            reason = f"{len(faces)} faces found, number {choice.index} ({choice.face}) was taken"
        return FaceReport(index, True, reason, len(faces), faces[choice.index])
    reason = "no face found"
    if faces:
        reason = f"no face number {choice.index}: only {len(faces)} found, counted from 0"
    if choice.on_missing == "error":
        raise NoFaceError(
            f"{reason} in photo {index + 1} of {count}: use a sharp, front-facing photo in which nothing "
            "covers the face, or let such photos be skipped"
        )
    return FaceReport(index, False, reason, len(faces))

"""Faces in photos: found and embedded by an insightface model pack.

Letters: N photos of one person, F faces in one photo, H, W height and width of a photo.
"""

from __future__ import annotations

import functools
import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .errors import FaceModelError, NoFaceError
from .face_models import load_face_models
from .face_packs import DEFAULT_FOLDERS, PACK_HINT, FacePack, find_face_pack
from .photos import reduce_photo

DETECTION_SIZES = (128, 256, 640)
"""Pixels to which the detector scales a photo. 640 misses close-ups, 128 misses small faces."""
MAX_UPSCALE = 4
"""A photo is not blown up further than this for detection: beyond it there is only blur to find."""
CLOSE_UP_PADDING = 0.5
"""Border around a photo in which no face was found, in photo sides: a face that fills the frame then fits."""
DETECTION_PX = 2 * DETECTION_SIZES[-1]
"""Photos with a longer side are averaged down before detection: insightface samples without averaging."""
RECOGNITION_BATCH = 64
DETECTION_SCORE = 0.5
"""Least confidence of a face: insightface's own default."""
OnMissing = Literal["error", "skip"]


@dataclass(frozen=True)
class Face:
    """One face found in a photo.

    Args:
        box: left, top, right, bottom in pixels of the photo (may lie outside it).
        score: confidence of the detector, 0 .. 1.
        landmarks: x, y of the eye on the left of the picture, the other eye, nose tip, left and right mouth
            corner.
    """

    box: tuple[float, float, float, float]
    score: float
    landmarks: tuple[tuple[float, float], ...]

    @property
    def area(self) -> float:
        """Square pixels of the box."""
        return max(self.box[2] - self.box[0], 0.0) * max(self.box[3] - self.box[1], 0.0)


@dataclass(frozen=True)
class FaceReport:
    """What became of one photo.

    Args:
        photo: its index, from 0.
        used: whether the features describe it.
        reason: one sentence for the user.
        num_faces: how many faces were found in it.
        face: the face that was taken, if any.
    """

    photo: int
    used: bool
    reason: str
    num_faces: int
    face: Face | None = None


class FaceAnalyzer:
    """Face detection and recognition by the insightface library, never from the network.

    Args:
        pack: a folder with the ONNX files of a detector and a recogniser (antelopev2, buffalo_l), or the name
            of a pack in one of ``folders``. A folder inside a folder, as the antelopev2 archive unpacks, and
            an insightface root with one pack work too.
        providers: see ``load_face_models``.
        detection_size: pixels to which a photo's longer side is scaled for detection, a multiple of 32; None
            tries ``DETECTION_SIZES``.
        folders: where a name is looked for.

    Raises:
        FaceModelError: the pack is missing or incomplete, insightface is not installed, or a provider that
            was asked for does not work.
    """

    def __init__(
        self,
        pack: str | Path | FacePack,
        providers: str | Sequence[str] | None = None,
        detection_size: int | None = None,
        folders: Sequence[str | Path] = DEFAULT_FOLDERS,
    ) -> None:
        """Find and load the pack."""
        found = pack if isinstance(pack, FacePack) else find_face_pack(pack, folders)
        self.name, self.folder = found.name, found.folder
        if detection_size is not None and (detection_size < 32 or detection_size % 32):
            raise FaceModelError(
                f"the detection size {detection_size} should be a multiple of 32: try 640 or 320"
            )
        self.detection_size = detection_size
        models = load_face_models(self.folder, providers)
        models.detector.prepare(0, input_size=(DETECTION_SIZES[0],) * 2, det_thresh=DETECTION_SCORE)
        self._models = models

    @functools.cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits over the recogniser's file: whose embeddings can be compared."""
        return hashlib.sha256(self.recogniser_file.read_bytes()).hexdigest()[:16]

    @property
    def recogniser_file(self) -> Path:
        """The recogniser's ONNX file: RGB crops of 112 x 112 pixels in [-1, 1], see `align` -> embeddings."""
        return Path(self._models.recogniser.model_file)

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers that are really in use, best first."""
        return self._models.providers

    def detect(self, photo: np.ndarray) -> list[Face]:
        """Find the faces of a photo, at several detection sizes; if there are none, with a border around it.

        Args:
            photo: (H, W, 3) uint8 RGB.

        Returns:
            The faces, largest first.
        """
        factor = math.ceil(max(photo.shape[:2]) / DETECTION_PX)
        small = reduce_photo(photo, factor)  # (H / factor, W / factor, 3)
        for padding, sizes in self._attempts(max(small.shape[:2])):
            faces = [_scaled(face, factor) for face in self.detect_at(small, sizes, padding)]
            if faces:
                return sorted(faces, key=lambda face: face.area, reverse=True)
        return []

    def _attempts(self, side: int) -> list[tuple[float, Sequence[int]]]:
        """What is tried in turn until a face is found: (padding, detection sizes)."""
        if self.detection_size is not None:
            return [(0.0, [self.detection_size]), (CLOSE_UP_PADDING, [self.detection_size])]
        sizes = [size for size in DETECTION_SIZES if size <= max(MAX_UPSCALE * side, DETECTION_SIZES[0])]
        first = sizes[:1] if side <= DETECTION_SIZES[1] else [sizes[0], sizes[-1]]
        return [(0.0, first), (0.0, sizes), (CLOSE_UP_PADDING, sizes)]

    def detect_at(self, photo: np.ndarray, sizes: Sequence[int], padding: float = 0.0) -> list[Face]:
        """Find faces at given detection sizes, duplicates removed.

        Args:
            photo: (H, W, 3) uint8 RGB.
            sizes: pixels to which the longer side is scaled, multiples of 32.
            padding: width of a black border, in longer sides of the photo.

        Returns:
            The faces, surest first.
        """
        border = round(padding * max(photo.shape[:2]))
        bgr = np.ascontiguousarray(photo[:, :, ::-1])  # (H, W, 3)
        if border:
            bgr = np.pad(bgr, ((border, border), (border, border), (0, 0)))  # black, as insightface pads
        boxes, landmarks = self._models.detector.detect(
            bgr, input_size=[(size, size) for size in sizes]
        )  # (F, 5), (F, 5, 2)
        if landmarks is None:
            raise FaceModelError(f"the detector of {self.folder} gives no landmarks: {PACK_HINT}")
        return [
            Face(
                box=tuple((box[:4] - border).tolist()),
                score=float(box[4]),
                landmarks=tuple(map(tuple, (points - border).tolist())),
            )
            for box, points in zip(boxes, landmarks, strict=True)
        ]

    def align(self, photo: np.ndarray, landmarks: np.ndarray | Sequence, size: int) -> np.ndarray:
        """A face turned and scaled so that its landmarks lie where the recogniser expects them.

        Args:
            photo: (H, W, 3) uint8 RGB.
            landmarks: (5, 2) in pixels, as in ``Face``.
            size: side of the crop in pixels, a multiple of 112.

        Returns:
            (size, size, 3) uint8 RGB; large faces are averaged down first.
        """
        points, align = np.asarray(landmarks, np.float32), self._models.face_align
        with warnings.catch_warnings():
            # insightface calls a function of scikit-image that has a successor: no user could change it
            warnings.filterwarnings("ignore", category=FutureWarning, module="insightface")
            matrix = align.estimate_norm(points, size)  # (2, 3), photo -> crop
            factor = max(int(1 / max(np.hypot(*matrix[:, 0]), 1e-6)), 1)
            factor = min(factor, max(min(photo.shape[:2]) // size, 1))  # landmarks may be nonsense
            small = np.ascontiguousarray(reduce_photo(photo, factor))  # (H / factor, W / factor, 3)
            return align.norm_crop(small, (points + 0.5) / factor - 0.5, image_size=size)

    def embed(self, photos: Sequence[np.ndarray], landmarks: np.ndarray) -> Tensor:
        """Embed one face of each photo, all in batches.

        Args:
            photos: N arrays (H, W, 3) uint8 RGB.
            landmarks: (N, 5, 2) in pixels, as in ``Face``.

        Returns:
            (N, 512) float32 rows of unit length.
        """
        recogniser = self._models.recogniser
        crops = [
            np.ascontiguousarray(self.align(photo, points, recogniser.input_size[0])[:, :, ::-1])
            for photo, points in zip(photos, landmarks, strict=True)
        ]  # N of (112, 112, 3) BGR
        # Some packs were exported for one picture at a time.
        step = 1 if recogniser.input_shape[0] == 1 else RECOGNITION_BATCH
        parts = [recogniser.get_feat(crops[i : i + step]) for i in range(0, len(crops), step)]
        embedding = torch.from_numpy(np.concatenate(parts)).float()  # (N, 512)
        return functional.normalize(embedding, dim=-1)

    def analyze(
        self, photos: Sequence[np.ndarray], on_missing: OnMissing = "error"
    ) -> tuple[Tensor, tuple[FaceReport, ...]]:
        """Find and embed the largest face of each photo.

        Args:
            photos: arrays (H, W, 3) uint8 RGB.
            on_missing: what to do with a photo without a face: "error", or "skip" it and report that.

        Returns:
            (N, 512) unit rows of the photos used, and a report per photo given.

        Raises:
            NoFaceError: a photo has no face (or, with "skip", none has).
        """
        reports = []
        for index, photo in enumerate(photos):
            faces = self.detect(photo)
            if not faces:
                if on_missing == "error":
                    raise NoFaceError(
                        f"no face found in photo {index + 1} of {len(photos)}: use a sharp, front-facing "
                        "photo in which nothing covers the face"
                    )
                reports.append(FaceReport(index, False, "no face found", 0))
                continue
            reason = (
                "one face found" if len(faces) == 1 else f"{len(faces)} faces found, the largest was taken"
            )
            reports.append(FaceReport(index, True, reason, len(faces), faces[0]))
        used = [
            (photos[report.photo], report.face.landmarks) for report in reports if report.face is not None
        ]
        if not used:
            raise NoFaceError(
                f"no face found in any of {len(photos)} photos: use a sharp, front-facing photo "
                "in which nothing covers the face"
            )
        return self.embed([photo for photo, _ in used], np.array([points for _, points in used])), tuple(
            reports
        )


def _scaled(face: Face, factor: int) -> Face:
    """The same face in a photo whose sides are ``factor`` times as long."""
    left, top, right, bottom = (_enlarged(value, factor) for value in face.box)
    points = tuple((_enlarged(x, factor), _enlarged(y, factor)) for x, y in face.landmarks)
    return replace(face, box=(left, top, right, bottom), landmarks=points)


def _enlarged(value: float, factor: int) -> float:
    """A coordinate after every pixel became ``factor`` pixels: whole numbers are the centres of pixels."""
    return (value + 0.5) * factor - 0.5

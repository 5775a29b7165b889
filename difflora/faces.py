"""Faces in photos: found and embedded by an insightface model pack.

Letters: N photos of one person, F faces in one photo, H, W height and width of a photo.
"""

from __future__ import annotations

import functools
import hashlib
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .errors import FaceModelError, NoFaceError

DETECTION_SIZES = (128, 256, 640)
"""Pixels to which the detector scales a photo. 640 misses close-ups, 128 misses small faces."""
MAX_UPSCALE = 4
"""A photo is not blown up further than this for detection: beyond it there is only blur to find."""
CLOSE_UP_PADDING = 0.5
"""Border around a photo in which no face was found, in photo sides: a face that fills the frame then fits."""
RECOGNITION_BATCH = 64
PROVIDERS = ("CUDAExecutionProvider", "ROCMExecutionProvider", "CPUExecutionProvider")
"""onnxruntime execution providers, best first; the ones not installed are skipped."""
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
        folder: a pack: a folder with the ONNX files of a detector and a recogniser (antelopev2, buffalo_l).
            A folder inside a folder, as the antelopev2 archive unpacks, and an insightface root with one
            pack work too.
        providers: onnxruntime execution providers; None means the best of ``PROVIDERS`` that are installed.

    Raises:
        FaceModelError: the pack is missing or incomplete, or insightface is not installed.
    """

    def __init__(self, folder: str | Path, providers: Sequence[str] | None = None) -> None:
        """Find and load the pack."""
        self.folder = find_face_pack(folder)
        self.name = self.folder.name
        try:
            import onnxruntime
            from insightface.app import FaceAnalysis
            from insightface.utils import face_align
        except ImportError as error:
            raise FaceModelError(
                f"the face models need two packages ({error}): pip install insightface onnxruntime"
            ) from error
        chosen = list(providers or [p for p in PROVIDERS if p in onnxruntime.get_available_providers()])
        try:
            # An absolute path as the name keeps insightface from looking (and downloading) anywhere else.
            analysis = FaceAnalysis(
                name=str(self.folder),
                root=str(self.folder.parent),
                providers=chosen,
                allowed_modules=["detection", "recognition"],
            )
        except Exception as error:  # onnxruntime's own errors share no base class; insightface asserts
            raise FaceModelError(
                f"the face pack {self.folder} cannot be loaded ({type(error).__name__}: {error}): "
                "it needs an intact detector and recogniser as .onnx files; download it again"
            ) from error
        if "recognition" not in analysis.models:
            raise FaceModelError(f"the face pack {self.folder} has no recogniser: {_pack_hint()}")
        self._norm_crop = face_align.norm_crop
        self._recogniser: Any = analysis.models["recognition"]
        self._detector: Any = analysis.models["detection"]
        # -1 is insightface's word for the CPU
        analysis.prepare(ctx_id=-1 if chosen == ["CPUExecutionProvider"] else 0, det_size=(128, 128))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits over the recogniser's file: whose embeddings can be compared."""
        content = Path(self._recogniser.model_file).read_bytes()
        return hashlib.sha256(content).hexdigest()[:16]

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers that are really in use, best first."""
        return tuple(self._recogniser.session.get_providers())

    def detect(self, photo: np.ndarray) -> list[Face]:
        """Find the faces of a photo, at several detection sizes; if there are none, with a border around it.

        Args:
            photo: (H, W, 3) uint8 RGB.

        Returns:
            The faces, largest first.
        """
        side = max(photo.shape[:2])
        sizes = [size for size in DETECTION_SIZES if size <= max(MAX_UPSCALE * side, DETECTION_SIZES[0])]
        first = sizes[:1] if side <= DETECTION_SIZES[1] else [sizes[0], sizes[-1]]
        for padding, attempt in ((0.0, first), (0.0, sizes), (CLOSE_UP_PADDING, sizes)):
            faces = self.detect_at(photo, attempt, padding)
            if faces:
                return sorted(faces, key=lambda face: face.area, reverse=True)
        return []

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
        boxes, landmarks = self._detector.detect(
            bgr, input_size=[(size, size) for size in sizes]
        )  # (F, 5), (F, 5, 2)
        if landmarks is None:
            raise FaceModelError(f"the detector of {self.folder} gives no landmarks: {_pack_hint()}")
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
            (size, size, 3) uint8 RGB.
        """
        with warnings.catch_warnings():
            # insightface calls a function of scikit-image that has a successor: no user could change it
            warnings.filterwarnings("ignore", category=FutureWarning, module="insightface")
            return self._norm_crop(
                np.ascontiguousarray(photo), np.asarray(landmarks, np.float32), image_size=size
            )

    def embed(self, photos: Sequence[np.ndarray], landmarks: np.ndarray) -> Tensor:
        """Embed one face of each photo, all in batches.

        Args:
            photos: N arrays (H, W, 3) uint8 RGB.
            landmarks: (N, 5, 2) in pixels, as in ``Face``.

        Returns:
            (N, 512) float32 rows of unit length.
        """
        size = self._recogniser.input_size[0]
        crops = [
            np.ascontiguousarray(self.align(photo, points, size)[:, :, ::-1])
            for photo, points in zip(photos, landmarks, strict=True)
        ]  # N of (112, 112, 3) BGR
        # Some packs were exported for one picture at a time.
        step = 1 if self._recogniser.input_shape[0] == 1 else RECOGNITION_BATCH
        parts = [self._recogniser.get_feat(crops[i : i + step]) for i in range(0, len(crops), step)]
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


def find_face_pack(folder: str | Path) -> Path:
    """The folder that holds a pack's ONNX files: this one, or the only one below it that has any.

    Args:
        folder: a pack, its parent, or an insightface root.

    Returns:
        An absolute path.

    Raises:
        FaceModelError: there is none, or more than one to choose from.
    """
    path = Path(folder).expanduser().resolve()
    if path.is_file():
        what = (
            "a zip archive: unpack it first"
            if zipfile.is_zipfile(path)
            else "a file: give the folder that it is in"
        )
        raise FaceModelError(f"the face pack {path} is {what}")
    if not path.is_dir():
        raise FaceModelError(f"no face pack at {path}: {_pack_hint()}")
    if any(path.glob("*.onnx")):
        return path
    packs = sorted({file.parent for pattern in ("*/*.onnx", "*/*/*.onnx") for file in path.glob(pattern)})
    if not packs:
        archives = ", ".join(file.name for file in sorted(path.glob("**/*.zip")))
        hint = f"unpack {archives} there" if archives else _pack_hint()
        raise FaceModelError(f"the face pack {path} has no .onnx files: {hint}")
    if len(packs) > 1:
        names = ", ".join(str(pack.relative_to(path)) for pack in packs)
        raise FaceModelError(f"{path} holds several face packs: choose one of {names}")
    return packs[0]


def _pack_hint() -> str:
    return (
        "give the folder of an insightface model pack with a detector and a recogniser, "
        "such as antelopev2 or buffalo_l (.onnx files, unpacked)"
    )

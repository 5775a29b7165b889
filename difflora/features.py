"""Photos -> features: face embeddings and, from a CLIP vision tower, image features.

Letters: B people, N photos of one person, C feature width, S side of a square, H, W size of a photo.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .base_model import weights_fingerprint
from .errors import DiffLoRAError, FaceModelError
from .faces import Face, FaceAnalyzer, FaceReport, OnMissing
from .files import load_safetensors
from .photos import Photo, as_photos, reduce_photo
from .vision_tower import load_vision_tower

CROP_MARGIN = 2.0
"""Side of the square that the image encoder sees, in sides of the face box: with hair, ears, shoulders."""
ENCODER_BATCH = 64
MAX_REDUCTION = 4
"""Times that the bicubic filter shrinks a crop; larger ones are averaged down to that first."""


@dataclass(frozen=True)
class Encoders:
    """Names of the two frozen encoders, and fingerprints of their weights."""

    face_pack: str
    face_fingerprint: str
    image_encoder: str
    image_fingerprint: str


@dataclass(frozen=True)
class IdentityFeatures:
    """Everything that DiffLoRA knows about a person, one row per used photo.

    Args:
        face_embedding: (N, 512) rows of unit length.
        image_features: (N, C).
        faces: a report for every photo given, so it may be longer than N.
        weights: (N,) how many times each photo counts, above 0; None counts each once.
        encoders: what made them, if known; features of other encoders mean something else.
    """

    face_embedding: Tensor
    image_features: Tensor
    faces: tuple[FaceReport, ...] = ()
    weights: Tensor | None = None
    encoders: Encoders | None = None

    def __len__(self) -> int:
        """Number of used photos N."""
        return self.face_embedding.shape[0]

    @property
    def mean_face(self) -> Tensor:
        """(512,) unit length: the weighted mean of the face embeddings, to compare pictures with."""
        face = self.face_embedding.float()  # (N, 512)
        if self.weights is not None:
            face = face * self.weights.to(face)[:, None]  # (N, 512)
        return functional.normalize(face.mean(dim=0), dim=0)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> IdentityFeatures:
        """The same features on another device."""
        return replace(
            self,
            face_embedding=self.face_embedding.to(device, dtype),
            image_features=self.image_features.to(device, dtype),
        )


class ImageFeatureEncoder(Protocol):
    """What reads image features from crops: ours, or one that a host brings."""

    @property
    def width(self) -> int:
        """Feature width C."""

    @property
    def fingerprint(self) -> str:
        """Over the weights and the grid; empty if unknown, then only the name is compared."""

    def with_grid(self, grid: int) -> ImageFeatureEncoder:
        """The same encoder with another grid of patches, see `image_features`; 0 is none."""

    @property
    def network(self) -> torch.nn.Module | None:
        """What a host may move between devices; None if it does so already."""

    def encode(self, photos: Sequence[np.ndarray]) -> Tensor:
        """Encode N arrays (H, W, 3) uint8 RGB, each squeezed to a square -> (N, C) float32 on the CPU."""


def image_features(projected: Tensor, tokens: Tensor, grid: int) -> Tensor:
    """Image features from a vision tower's outputs: the projection, and where in the picture what is.

    CLIP's projection was trained to name a picture; of a face's features it keeps little. The patches still
    have them: every patch is normalised, and they are averaged on a coarse grid. (IP-Adapter-Plus reads patch
    tokens for the same reason.) [ours]

    Args:
        projected: (n, C') projected class token.
        tokens: (n, L, W) of the last layer, the class token first, then a square of patches.
        grid: G, cells on a side; 0 leaves the patches out.

    Returns:
        (n, C' + G * G * W) float32 on the CPU; cells row by row.
    """
    features = [projected.float().cpu()]  # (n, C')
    if grid:
        patches = functional.layer_norm(tokens[:, 1:].float(), tokens.shape[-1:])  # (n, L - 1, W)
        side = math.isqrt(patches.shape[1])
        square = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (n, W, side, side)
        cells = functional.adaptive_avg_pool2d(square, grid)  # (n, W, G, G)
        features.append(cells.permute(0, 2, 3, 1).flatten(1).cpu())  # (n, G * G * W)
    return torch.cat(features, dim=1)


class ImageEncoder:
    """Image features of a CLIP vision tower from a folder of transformers' ``CLIPVisionModelWithProjection``.

    Args:
        folder: has config.json, model.safetensors and preprocessor_config.json.
        device: where it runs.
        dtype: its precision.
        grid: of patches, see `image_features`; `DiffLoRA` takes the one that its checkpoint needs.

    Raises:
        FaceModelError: the folder is missing or incomplete.
    """

    def __init__(
        self,
        folder: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        grid: int = 0,
    ) -> None:
        """Load the tower and its normalisation."""
        self.folder = Path(folder).expanduser().resolve()
        for name in ("config.json", "preprocessor_config.json"):
            if not (self.folder / name).is_file():
                raise FaceModelError(
                    f"the image encoder {self.folder} has no {name}: give the folder of a CLIP vision model"
                )
        try:
            settings = json.loads((self.folder / "preprocessor_config.json").read_text(encoding="utf-8"))
            self._mean = torch.tensor(settings["image_mean"])[:, None, None]  # (3, 1, 1)
            self._std = torch.tensor(settings["image_std"])[:, None, None]  # (3, 1, 1)
            config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
            model = load_vision_tower(config, load_safetensors(self.folder / "model.safetensors")[0])
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise FaceModelError(
                f"the image encoder {self.folder} cannot be loaded ({error}): it needs config.json, "
                "model.safetensors and preprocessor_config.json of a CLIP vision model; download it again"
            ) from error
        self._model = model.train(False).requires_grad_(False).to(device=device, dtype=dtype)
        self._weights_fingerprint = weights_fingerprint(self._model)
        self.grid = grid

    @property
    def width(self) -> int:
        """Feature width C."""
        config = self._model.config
        return config.projection_dim + self.grid**2 * config.hidden_size

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits over the tower's weights, and the grid if there is one."""
        return self._weights_fingerprint + (f"-grid{self.grid}" if self.grid else "")

    def with_grid(self, grid: int) -> ImageEncoder:
        """The same tower with another grid of patches."""
        other = copy.copy(self)
        other.grid = grid
        return other

    @property
    def network(self) -> torch.nn.Module:
        """The tower. A host may move it between devices; `encode` follows."""
        return self._model

    @torch.no_grad()
    def encode(self, photos: Sequence[np.ndarray]) -> Tensor:
        """Encode pictures, each squeezed to the square that the tower was trained on.

        Args:
            photos: N arrays (H, W, 3) uint8 RGB, best square.

        Returns:
            (N, C) float32 on the CPU.
        """
        if not photos:
            return torch.zeros(0, self.width)
        parts = []
        for start in range(0, len(photos), ENCODER_BATCH):
            pixels = torch.stack([self._pixels(photo) for photo in photos[start : start + ENCODER_BATCH]])
            pixels = pixels.to(self._model.visual_projection.weight)  # (n, 3, S, S)
            seen = self._model(pixels)
            parts.append(image_features(seen.projected, seen.tokens, self.grid))  # (n, C)
        return torch.cat(parts)

    def _pixels(self, photo: np.ndarray) -> Tensor:
        return (square_pixels(photo, self._model.config.image_size) - self._mean) / self._std  # (3, S, S)


def square_pixels(photo: np.ndarray, size: int) -> Tensor:
    """A photo squeezed to the square that an image encoder was trained on.

    Args:
        photo: (H, W, 3) uint8 RGB.
        size: S, the encoder's side in pixels.

    Returns:
        (3, S, S) float32 in 0 .. 1.
    """
    photo = reduce_photo(photo, min(photo.shape[:2]) // (MAX_REDUCTION * size))  # bicubic is slow
    pixels = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float() / 255.0  # (1, 3, H, W)
    if pixels.shape[2:] != (size, size):
        pixels = functional.interpolate(
            pixels, (size, size), mode="bicubic", antialias=True, align_corners=False
        ).clamp(0.0, 1.0)
    return pixels[0]


def crop_face(photo: np.ndarray, face: Face, margin: float = CROP_MARGIN) -> np.ndarray:
    """The square around a face that the image encoder sees.

    It is ``margin`` times as wide as the face box, moved inside the photo where that is possible and no
    larger than the photo unless the face itself is; what still lies outside repeats the photo's edge.

    Args:
        photo: (H, W, 3) uint8 RGB.
        face: a face of that photo.
        margin: sides of the face box.

    Returns:
        (S, S, 3) uint8 RGB.
    """
    height, width = photo.shape[:2]
    left, top, right, bottom = face.box
    face_side = max(right - left, bottom - top, 1.0)
    side = max(round(min(margin * face_side, max(face_side, min(height, width)))), 1)
    x = _start((left + right) / 2, side, width) + np.arange(side)  # (S,)
    y = _start((top + bottom) / 2, side, height) + np.arange(side)  # (S,)
    return photo[y.clip(0, height - 1)[:, None], x.clip(0, width - 1)[None, :]]  # (S, S, 3)


def _start(centre: float, side: int, limit: int) -> int:
    start = round(centre - side / 2)
    return min(max(start, 0), limit - side) if side <= limit else start


def encode_photos(
    photos: Photo | Sequence[Photo],
    face_analyzer: FaceAnalyzer,
    image_encoder: ImageFeatureEncoder,
    on_missing: OnMissing = "error",
) -> IdentityFeatures:
    """Features of one person from their photos: the largest face of each is taken.

    Args:
        photos: N photos, see ``as_photos``.
        face_analyzer: finds and embeds faces.
        image_encoder: encodes the square of ``CROP_MARGIN`` face boxes around each face.
        on_missing: what to do with a photo without a face: "error" or "skip".

    Returns:
        One row per used photo and a report per photo.

    Raises:
        PhotoError: a photo is unusable.
        NoFaceError: a photo has no face (or, with "skip", none has).
    """
    loaded = as_photos(photos)
    face_embedding, faces = face_analyzer.analyze(loaded, on_missing)  # (N, 512)
    crops = [crop_face(loaded[report.photo], report.face) for report in faces if report.face is not None]
    return IdentityFeatures(face_embedding, image_encoder.encode(crops), faces)  # (N, 512), (N, C)


def check_encoders(theirs: Encoders | None, ours: Encoders) -> None:
    """Refuse features that other encoders made: they would mean something else.

    Args:
        theirs: of the features; None (unknown) passes.
        ours: of the model that is to use them; without face models its fingerprints are empty, and the names
            decide.

    Raises:
        DiffLoRAError: they differ.
    """
    if theirs is None or theirs == ours:
        return
    same_names = (theirs.face_pack, theirs.image_encoder) == (ours.face_pack, ours.image_encoder)
    if same_names and not (ours.face_fingerprint and ours.image_fingerprint):
        return
    raise DiffLoRAError(
        f"these features are by the face pack {theirs.face_pack!r} ({theirs.face_fingerprint}) and the image "
        f"encoder {theirs.image_encoder!r} ({theirs.image_fingerprint}), but this DiffLoRA model uses "
        f"{ours.face_pack!r} ({ours.face_fingerprint}) and {ours.image_encoder!r} "
        f"({ours.image_fingerprint}): encode the photos again, or load the model that they were encoded with"
    )


def join_features(people: Sequence[IdentityFeatures], shares: Sequence[float]) -> IdentityFeatures:
    """The photos of several people as if they were one person's.

    Args:
        people: features by the same encoders.
        shares: how much each person counts, >= 0; a person's share is spread over their photos.

    Returns:
        Features of all photos of the people with a share above 0, with weights whose mean is 1.

    Raises:
        DiffLoRAError: features of different encoders.
    """
    kept = [(person, share) for person, share in zip(people, shares, strict=True) if share > 0.0]
    if len({person.encoders for person, _ in kept if person.encoders is not None}) > 1:
        raise DiffLoRAError(
            "these people were encoded by different encoders: encode all photos with one DiffLoRA model"
        )
    weights = []
    for person, share in kept:
        own = torch.ones(len(person)) if person.weights is None else person.weights.float().cpu()  # (N,)
        weights.append(share * own / own.sum())  # (N,)
    joined = torch.cat(weights)
    return IdentityFeatures(
        torch.cat([person.face_embedding for person, _ in kept]),
        torch.cat([person.image_features for person, _ in kept]),
        weights=joined / joined.mean(),
        encoders=kept[0][0].encoders,
    )


def pad_photos(
    people: Sequence[IdentityFeatures], device: torch.device | str
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch people with different numbers of photos.

    Args:
        people: features of B people.
        device: of the result.

    Returns:
        face (B, N, 512), image (B, N, C), mask (B, N) for `MixedImageFeatures`: bool, true where there is a
        photo, or float if photos of anybody have weights; N is the largest number of photos.
    """
    pad = torch.nn.utils.rnn.pad_sequence
    face = pad([features.face_embedding.float() for features in people], batch_first=True)  # (B, N, 512)
    image = pad([features.image_features.float() for features in people], batch_first=True)  # (B, N, C)
    if all(features.weights is None for features in people):
        rows = [torch.ones(len(features), dtype=torch.bool) for features in people]
    else:
        rows = [
            torch.ones(len(features)) if features.weights is None else features.weights.float().cpu()
            for features in people
        ]
    mask = pad(rows, batch_first=True)  # (B, N)
    return face.to(device), image.to(device), mask.to(device)

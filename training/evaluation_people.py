"""Whom evaluation asks about: people, prompts, and the photos that a user would give.

Letters: B people, N photos of one person, n pictures of each, K prompts, C feature width, S picture size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from difflora.errors import FaceModelError, NoFaceError
from difflora.features import FaceAnalyzer, IdentityFeatures, ImageEncoder, encode_photos
from difflora.model import DiffLoRA
from difflora.photos import as_arrays
from difflora.synthetic.people import sample_people
from difflora.synthetic.renderer import PHOTO_PX, render
from difflora.synthetic.scenes import Scene, sample_scenes

NUM_PHOTOS = 4
SPARE_PHOTOS = 2
"""Rendered in addition, to replace photos in which no face is found."""
PROMPT_SEED = {"validation": 501, "test": 502}
PHOTO_SEED = {"train": 600_000, "validation": 700_000, "test": 800_000}
"""Scene seeds of reference photos, plus the person's index; other than those of training and judging."""


@dataclass(frozen=True, eq=False)
class Panel:
    """The people of one split and what is asked of the base model about them.

    Args:
        split: whose people.
        traits: (B, traits).
        scenes: K scenes, whose prompts everybody gets.
        photos: (B, 3, H, W) the first reference photo of each, in [-1, 1].
        features: of B people, N photos each.
    """

    split: str
    traits: Tensor
    scenes: Scene
    photos: Tensor
    features: list[IdentityFeatures]


def prompt_scenes(split: str, num_prompts: int) -> Scene:
    """The K scenes that the prompts of a split describe."""
    return sample_scenes(num_prompts, PROMPT_SEED[split])


def photograph(model: DiffLoRA, split: str, count: int) -> tuple[Tensor, list[IdentityFeatures]]:
    """Reference photos of people as a user gives them: pixels, any scene, faces that have to be found.

    Args:
        model: with face models.
        split: whose people.
        count: B.

    Returns:
        (B, 3, H, W) first used photos in [-1, 1], and B features of up to `NUM_PHOTOS` photos.

    Raises:
        NoFaceError: a person with no usable photo at all.
        FaceModelError: the model came without face models.
    """
    face_analyzer, image_encoder = face_models(model)
    first, features = [], []
    for index in range(count):
        pictures = photos_of(split, index, NUM_PHOTOS + SPARE_PHOTOS)  # (N, 3, H, W) in [-1, 1]
        found = encode_photos(as_arrays(pictures), face_analyzer, image_encoder, on_missing="skip")
        features.append(first_photos(found, NUM_PHOTOS))
        first.append(pictures[next(report.photo for report in found.faces if report.used)])
    return torch.stack(first), features


def photos_of(split: str, index: int, count: int, size: int = PHOTO_PX) -> Tensor:
    """Random photos of one person: (N, 3, S, S) in [-1, 1]."""
    scenes = photo_scenes(split, index, count)
    return render(sample_people(split, index, 1).expand(count, -1), scenes, size).pictures * 2 - 1


def photo_scenes(split: str, index: int, count: int) -> Scene:
    """The scenes of one person's photos."""
    return sample_scenes(count, PHOTO_SEED[split] + index)


def first_photos(features: IdentityFeatures, count: int) -> IdentityFeatures:
    """The features of the first photos only."""
    return replace(
        features,
        face_embedding=features.face_embedding[:count],  # (N, 512)
        image_features=features.image_features[:count],  # (N, C)
    )


def reference_number(face_analyzer: FaceAnalyzer, split: str, index: int) -> int:
    """Which photo of a person is the one that DiffLoRA sees when it sees one: the first with a face.

    Raises:
        NoFaceError: in none of them.
    """
    for number, photo in enumerate(as_arrays(photos_of(split, index, NUM_PHOTOS + SPARE_PHOTOS))):
        try:
            face_analyzer.analyze([photo])
        except NoFaceError:
            continue
        return number
    raise NoFaceError(f"no face found in any photo of {split} person {index}: use another detector")


def face_models(model: DiffLoRA) -> tuple[FaceAnalyzer, ImageEncoder]:
    """The model's face models.

    Raises:
        FaceModelError: it came without.
    """
    if model.face_analyzer is None or model.image_encoder is None:
        raise FaceModelError("evaluation needs face models: use a checkpoint of the synthetic world")
    return model.face_analyzer, model.image_encoder


@dataclass(frozen=True)
class ReferencePhotos:
    """The one photo of each person that evaluation shows to DiffLoRA, as a `People` to train LoRAs on.

    Args:
        split: whose people.
        face_analyzer: decides which photo it is.
    """

    split: str
    face_analyzer: FaceAnalyzer
    pictures_per_person: int = 1

    def description(self) -> dict[str, Any]:
        """See `People`."""
        return {"source": "reference", "split": self.split}

    def pictures(self, indices: list[int], size: int) -> tuple[Tensor, list[list[str]]]:
        """Pictures (B, 1, 3, S, S) in [-1, 1], shrunk from the photo itself, and B lists of its prompt."""
        pictures, prompts = [], []
        for index in indices:
            number = reference_number(self.face_analyzer, self.split, index)
            photo = photos_of(self.split, index, NUM_PHOTOS + SPARE_PHOTOS)[number]  # (3, H, W)
            pictures.append(functional.interpolate(photo[None], (size, size), mode="area"))  # (1, 3, S, S)
            scenes: Sequence[str] = photo_scenes(self.split, index, NUM_PHOTOS + SPARE_PHOTOS).prompts()
            prompts.append([scenes[number]])
        return torch.stack(pictures), prompts

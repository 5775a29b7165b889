"""Whom evaluation asks about, and every method's LoRAs for them.

Letters: B people, N photos of one person, K prompts, n LoRAs of the library, C width of a photo's features,
Q principal components, P parameters of one LoRA.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from difflora.base_model import BaseModel
from difflora.candidates import batched_draw, rank_candidates
from difflora.controls import PrincipalComponents, RidgeRegression, mean_lora, nearest_lora
from difflora.errors import CheckpointError, FaceModelError
from difflora.features import FaceAnalyzer, IdentityFeatures, ImageEncoder, encode_photos
from difflora.model import DiffLoRA
from difflora.photos import as_arrays
from difflora.synthetic.people import sample_people
from difflora.synthetic.renderer import PHOTO_PX, render
from difflora.synthetic.scenes import Scene, sample_scenes
from training.lora_library import Library
from training.photo_pool import photo_features

NUM_PHOTOS = 4
SPARE_PHOTOS = 2
"""Rendered in addition, to replace photos in which no face is found."""
REGULARISERS = (0.01, 0.1, 1.0)
MAX_COMPONENTS = 128
"""More than the 33 true traits need; ridge regression decides how much of each it believes."""
PROMPT_SEED = {"validation": 501, "test": 502}
PHOTO_SEED = {"train": 600_000, "validation": 700_000, "test": 800_000}
"""Scene seeds of reference photos, plus the person's index; other than those of training and judging."""


@dataclass(frozen=True, eq=False)
class Panel:
    """The people of one split and what is asked of the base model about them.

    Args:
        traits: (B, traits).
        scenes: K scenes, whose prompts everybody gets.
        photos: (B, 3, H, W) the first reference photo of each, in [-1, 1].
        features: of B people, N photos each.
    """

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


def photos_of(split: str, index: int, count: int) -> Tensor:
    """Random photos of one person: (N, 3, H, W) in [-1, 1]."""
    scenes = sample_scenes(count, PHOTO_SEED[split] + index)
    return render(sample_people(split, index, 1).expand(count, -1), scenes, PHOTO_PX).pictures * 2 - 1


def first_photos(features: IdentityFeatures, count: int) -> IdentityFeatures:
    """The features of the first photos only."""
    return replace(
        features,
        face_embedding=features.face_embedding[:count],  # (N, 512)
        image_features=features.image_features[:count],  # (N, C)
    )


def library_features(model: DiffLoRA, people: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Features of the photos of the library's people.

    Returns:
        (n, N, C) face embedding and image features side by side, and (n, N) whether a face was found.
    """
    face_analyzer, image_encoder = face_models(model)
    features, valid = [], []
    for index in people:
        photos = as_arrays(photos_of("train", index, NUM_PHOTOS))
        face, image, found = photo_features(photos, face_analyzer, image_encoder)  # (N, ...) each
        features.append(torch.cat([face, image], dim=1))  # (N, C)
        valid.append(found)
    return torch.stack(features), torch.stack(valid)


def face_models(model: DiffLoRA) -> tuple[FaceAnalyzer, ImageEncoder]:
    """The model's face models.

    Raises:
        FaceModelError: it came without.
    """
    if model.face_analyzer is None or model.image_encoder is None:
        raise FaceModelError("evaluation needs face models: use a checkpoint of the synthetic world")
    return model.face_analyzer, model.image_encoder


class Controls:
    """The methods without a diffusion model, fitted on the library."""

    def __init__(self, library: Library, features: Tensor, valid: Tensor, face_width: int) -> None:
        """Fit.

        Args:
            library: n LoRAs.
            features: (n, N, C) of their people, zero where no face was found.
            valid: (n, N) whether one was found.
            face_width: how much of C is the face embedding.
        """
        self.loras = library.flat  # (n, P)
        self.face_width = face_width
        face = features[..., :face_width].sum(dim=1)  # (n, face width)
        self.faces = torch.nn.functional.normalize(face, dim=-1)
        person, _ = valid.nonzero(as_tuple=True)  # (m,) whose the m photos with a face are
        photos = features[valid]  # (m, C)
        # both halves get the same total variance: they come in unrelated units
        spread = photos.var(dim=0)  # (C,)
        halves = [half.sum().sqrt().expand(len(half)) for half in (spread[:face_width], spread[face_width:])]
        self.unit = torch.cat(halves)  # (C,)
        self.components = PrincipalComponents.fit(self.loras, min(MAX_COMPONENTS, len(self.loras) - 1))
        targets = self.components.project(self.loras)[person]  # (m, Q)
        self.regressions = {r: RidgeRegression.fit(photos / self.unit, targets, r) for r in REGULARISERS}

    def mean(self, features: Tensor) -> Tensor:
        """The same LoRA for everybody: (B, C) -> (B, P)."""
        return mean_lora(self.loras).expand(len(features), -1)

    def nearest(self, features: Tensor) -> Tensor:
        """Of whoever looks most alike: (B, C) -> (B, P)."""
        return nearest_lora(features[:, : self.face_width], self.faces, self.loras)

    def ridge(self, features: Tensor, regulariser: float) -> Tensor:
        """Regressed: (B, C) -> (B, P)."""
        return self.components.reconstruct(self.regressions[regulariser].predict(features / self.unit))


def ridge_name(regulariser: float) -> str:
    """Row name of one candidate on validation people."""
    return f"ridge_{regulariser:g}"


def all_rows(
    model: DiffLoRA, base: BaseModel, controls: Controls, panel: Panel, trained: Tensor, seed: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Every method's LoRAs.

    Args:
        model: DiffLoRA.
        base: draws the candidates of best-of-n.
        controls: fitted controls.
        panel: B people.
        trained: (B, P) LoRAs trained on them.
        seed: of DiffLoRA's sampler.

    Returns:
        Row -> (B, P), and row -> CPU seconds per person from features to weights.
    """
    one = [first_photos(features, 1) for features in panel.features]
    photo = torch.cat([torch.cat([f.face_embedding, f.image_features], dim=1) for f in one])  # (B, C)
    networks = model.checkpoint.networks
    methods = {
        "mean_lora": lambda: controls.mean(photo),
        "nearest_lora": lambda: controls.nearest(photo),
        **{ridge_name(r): lambda r=r: controls.ridge(photo, r) for r in REGULARISERS},
        "lae_trained": lambda: networks.decode_latents(networks.encode_loras(trained)),
        "difflora_1": lambda: model.generate_weights(one, seed=seed),
        "difflora_best": lambda: (
            rank_candidates(model, batched_draw(model, base, seed), one, seed=seed).best_weights
        ),
        "difflora_4": lambda: model.generate_weights(panel.features, seed=seed),
    }
    rows, seconds = {}, {}
    with torch.no_grad():
        for name, make in methods.items():
            start = time.process_time()
            rows[name] = make().float().cpu()  # (B, P)
            seconds[name] = (time.process_time() - start) / len(trained)
    return {**rows, "trained_lora": trained}, seconds


def loras_of(library: Library, model: DiffLoRA, count: int, split: str) -> Tensor:
    """The LoRAs of people 0 .. count - 1 of a split, checked against the model.

    Returns:
        (count, P)

    Raises:
        CheckpointError: people are missing, or the library is not the model's.
    """
    check_same_library(library, model)
    place = {int(person): row for row, person in enumerate(library.people.tolist())}
    if missing := [person for person in range(count) if person not in place]:
        raise CheckpointError(
            f"{len(missing)} of {count} {split} people have no trained LoRA: "
            f"run training.make_loras --split {split} --people {count} with the library's settings"
        )
    return library.flat[[place[person] for person in range(count)]]  # (count, P)


def check_same_library(library: Library, model: DiffLoRA) -> None:
    """Refuse to compare LoRAs of different layouts or with another `lora_down`.

    Raises:
        CheckpointError: says what differs.
    """
    if library.layout.fingerprint != model.layout.fingerprint:
        raise CheckpointError(
            f"the library has the layout {library.layout.fingerprint}, not {model.layout.fingerprint}: "
            "give the library that it was trained on (--library)"
        )
    own = model.shared_down or {}
    for name, down in library.shared_down.items():
        if not torch.allclose(own[name].cpu(), down, atol=1e-5):
            raise CheckpointError(
                "the library's lora_down is not the checkpoint's: give the checkpoint's library (--library)"
            )

"""Every method's LoRAs for the people of the evaluation.

Letters: B people, N photos of one person, n LoRAs of the library, m photos of their people, C width of a
photo's features, Q principal components, P parameters of one LoRA.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from difflora.base_model import BaseModel
from difflora.candidates import Ranking, batched_draw, rank_candidates
from difflora.controls import (
    MlpRegression,
    PrincipalComponents,
    RidgeRegression,
    mean_lora,
    nearest_lora,
)
from difflora.errors import CheckpointError
from difflora.features import IdentityFeatures
from difflora.model import DiffLoRA
from difflora.photos import as_arrays
from difflora.refinement import RefinementConfig, refine_latents
from training.basis_regressor import BasisRegressor
from training.evaluation_people import (
    NUM_PHOTOS,
    Panel,
    ReferencePhotos,
    face_models,
    first_photos,
    photos_of,
)
from training.evaluation_pictures import LoraBatch
from training.latent_fitting import fit_codes
from training.latent_translation import Translation
from training.lora_library import Library, check_same_loras
from training.photo_pool import photo_features

REFINED_AT_ONCE = FITTED_AT_ONCE = 32  # people: their pictures go through the base model together
REGULARISERS = (0.01, 0.1, 1.0)
FITTING_STEPS = 60
MAX_COMPONENTS = 128
"""More than the 33 true traits need; ridge regression decides how much of each it believes."""
MLP_HELD_OUT = 0.1
"""Of the library's people, its last ones: they choose when training of the MLP stops."""


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
        last = person >= len(self.loras) - max(1, round(MLP_HELD_OUT * len(self.loras)))  # (m,)
        self.perceptron = MlpRegression.fit(photos / self.unit, targets, last)

    def mean(self, features: Tensor) -> Tensor:
        """The same LoRA for everybody: (B, C) -> (B, P)."""
        return mean_lora(self.loras).expand(len(features), -1)

    def nearest(self, features: Tensor) -> Tensor:
        """Of whoever looks most alike: (B, C) -> (B, P)."""
        return nearest_lora(features[:, : self.face_width], self.faces, self.loras)

    def ridge(self, features: Tensor, regulariser: float) -> Tensor:
        """Regressed: (B, C) -> (B, P)."""
        return self.components.reconstruct(self.regressions[regulariser].predict(features / self.unit))

    def mlp(self, features: Tensor) -> Tensor:
        """Regressed without being linear: (B, C) -> (B, P)."""
        return self.components.reconstruct(self.perceptron.predict(features / self.unit))


def ridge_name(regulariser: float) -> str:
    """Row name of one candidate on validation people."""
    return f"ridge_{regulariser:g}"


@dataclass(frozen=True, eq=False)
class Rows:
    """What the methods made.

    Args:
        flat: row -> LoRAs (B, P).
        seconds: row -> CPU seconds per person from features to weights.
        ranking: the candidates of best-of-n.
    """

    flat: dict[str, Tensor]
    seconds: dict[str, float]
    ranking: Ranking


def all_rows(
    model: DiffLoRA,
    base: BaseModel,
    controls: Controls,
    panel: Panel,
    trained: dict[str, Tensor],
    seed: int,
    translation: Translation,
    regressors: Mapping[str, BasisRegressor],
) -> Rows:
    """Every method's LoRAs.

    Args:
        model: DiffLoRA.
        base: draws the candidates of best-of-n.
        controls: fitted controls.
        panel: B people.
        trained: row -> (B, P) LoRAs trained on them; "trained_lora" is one of the rows, "trained_started"
            may be.
        seed: of DiffLoRA's sampler.
        translation: encodes LoRAs trained as the library's.
        regressors: row -> trained end to end.
    """
    one = [first_photos(features, 1) for features in panel.features]
    photo = torch.cat([torch.cat([f.face_embedding, f.image_features], dim=1) for f in one])  # (B, C)
    networks, of_library = model.checkpoint.networks, trained.get("trained_library", trained["trained_lora"])
    ranked: list[Ranking] = []

    def through_lae(flat: Tensor) -> Tensor:
        return networks.decode_latents(networks.encode_loras(flat))

    def fitted(flat: Tensor) -> Tensor:
        loras = LoraBatch(model.layout, model.shared_down, flat.to(base.device), 1.0)
        codes = translation.encode(loras.flat)  # (B, T, C)
        spread = torch.ones_like(codes[0])  # (T, C)
        parts = [
            fit_codes(
                base,
                replace(loras, flat=some),
                networks.decode_latents,
                start,
                num_steps=FITTING_STEPS,
                spread=spread,
            )
            for some, start in zip(loras.flat.split(FITTED_AT_ONCE), codes.split(FITTED_AT_ONCE), strict=True)
        ]
        return networks.decode_latents(torch.cat(parts))

    def best_of_n() -> Tensor:
        ranked.append(rank_candidates(model, batched_draw(model, base, seed), one, seed=seed))
        return ranked[0].best_weights  # (B, P)

    methods = {
        "mean_lora": lambda: controls.mean(photo),
        "nearest_lora": lambda: controls.nearest(photo),
        **{ridge_name(r): lambda r=r: controls.ridge(photo, r) for r in REGULARISERS},
        "mlp": lambda: controls.mlp(photo),
        **{name: lambda own=own: own.generate_weights(one) for name, own in regressors.items()},
        "lae_trained": lambda: networks.decode_latents(translation.encode(of_library)),
        "lae_fitted": lambda: fitted(of_library),
        **(
            {"lae_started": lambda: through_lae(trained["trained_started"])}
            if "trained_started" in trained
            else {}
        ),
        "difflora_1": lambda: model.generate_weights(one, seed=seed),
        "difflora_best": best_of_n,
        "difflora_refined": lambda: refined(model, base, panel, one, seed),
        "difflora_4": lambda: model.generate_weights(panel.features, seed=seed),
    }
    rows, seconds = {}, {}
    with torch.no_grad():
        for name, make in methods.items():
            start = time.process_time()
            rows[name] = make().float().cpu()  # (B, P)
            seconds[name] = (time.process_time() - start) / len(one)
    return Rows({**rows, **trained}, seconds, ranked[0])


def refined(model: DiffLoRA, base: BaseModel, panel: Panel, one: list[IdentityFeatures], seed: int) -> Tensor:
    """DiffLoRA's LoRAs from one photo, refined on that photo and its caption: (B, P)."""
    networks, people = model.checkpoint.networks, list(range(len(one)))
    photos = ReferencePhotos(panel.split, face_models(model)[0])
    pictures, captions = photos.pictures(people, base.picture_px)  # (B, 1, 3, S, S)
    prompts = base.encode_prompts([caption for (caption,) in captions])  # (B, L, W)
    latents = model.sample_latents(one, seed)  # (B, T, C)
    images = base.encode_images(pictures.flatten(0, 1))[:, None]  # (B, 1, Cl, h, w)
    some = (part.split(REFINED_AT_ONCE) for part in (latents, images, prompts[:, None]))
    groups = [
        refine_latents(networks, model.shared_down, base, *group, RefinementConfig(), seed)
        for group in zip(*some, strict=True)
    ]
    return networks.decode_latents(torch.cat(groups))


def loras_of(library: Library, model: DiffLoRA, count: int, split: str, option: str = "") -> Tensor:
    """The LoRAs of people 0 .. count - 1 of a split, checked against the model.

    Args:
        library: of the split.
        model: whose LoRAs they have to be.
        count: how many people.
        split: its name, and
        option: one more option of the command that trains them, both for the error.

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
            f"run training.make_loras --split {split} --people {count} {option}with the library's settings"
        )
    return library.flat[[place[person] for person in range(count)]]  # (count, P)


def check_same_library(library: Library, model: DiffLoRA) -> None:
    """Refuse to compare LoRAs of different layouts or with another `lora_down`.

    Raises:
        CheckpointError: says what differs.
    """
    check_same_loras(
        "the library",
        library.layout,
        library.shared_down,
        model,
        "give the checkpoint's library (--library), or make one by make_loras --like CHECKPOINT",
    )

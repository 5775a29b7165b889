"""Train LoRAs for likeness as well: the base model's guess of a picture has to show the same face.

The base model's own loss counts pixels, and few of them tell people apart. So its guess of the clean picture
is decoded, the face is cut out where the true picture has it, and the recogniser that conditions compares the
two (as PuLID, arXiv 2404.16022, section 3.3, does for an adapter, with a sampler of four steps).
A cut-out face has no hair and no outline of the head, which people are known by as well: a second recogniser
may compare the whole pictures. [ours]

The guess is of the base model's own making: from a noisy true picture it takes one step of the sampler to
half of the time, and guesses from there. A sampler has nothing else to start from than its own guesses, while
a noisy true picture still shows who it is, so that a LoRA would only learn to leave the face alone. [ours]

Letters: B people, n pictures of each, K of them in a step, m pictures with a face, S picture side,
E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate

from difflora.base_model import BaseModel
from difflora.errors import NoFaceError
from difflora.faces import FaceAnalyzer
from difflora.lora_training import Batch
from difflora.photos import as_arrays
from difflora.synthetic.recognisers import align
from training.onnx_network import OnnxNetwork


@dataclass(frozen=True, eq=False)
class View:
    """One recogniser's look at pictures.

    Args:
        recogniser: pictures (m, 3, S, S) in [-1, 1], S as it was exported, -> embeddings (m, E).
        weight: of the distance between what it makes of the guess and of the true picture.
        aligned: whether it sees faces, cut out as ArcFace's are, or whole pictures.
    """

    recogniser: OnnxNetwork
    weight: float
    aligned: bool = True

    def embed(self, pictures: Tensor, landmarks: Tensor) -> Tensor:
        """(m, 3, S, S) in [-1, 1], (m, 5, 2) in pixels -> (m, E)."""
        side = self.recogniser.side
        if self.aligned:
            pictures = align(pictures, landmarks)  # (m, 3, 112, 112)
        elif side and side != pictures.shape[-1]:
            pictures = interpolate(pictures, (side, side), mode="bilinear", antialias=True)
        return self.recogniser(pictures).float()


@dataclass(frozen=True, eq=False)
class IdentityLoss:
    """An `Objective`: the base model's loss, and weight x (1 - cosine of its guess and the true picture).

    Args:
        views: who compares the two; their terms are added.
        landmarks: (B, n, 5, 2) of the true pictures, in pixels.
        found: (B, n) bool; a picture without a face counts for the base model's loss only.
    """

    views: Sequence[View]
    landmarks: Tensor
    found: Tensor

    @classmethod
    def of(cls, views: Sequence[View], face_analyzer: FaceAnalyzer, pictures: Tensor) -> IdentityLoss:
        """Find the faces of pictures (B, n, 3, S, S) in [-1, 1].

        Raises:
            NoFaceError: none of somebody's pictures has a face.
        """
        count = pictures.shape[1]
        landmarks = torch.zeros(len(pictures), count, 5, 2)  # (B, n, 5, 2)
        found = torch.zeros(len(pictures), count, dtype=torch.bool)  # (B, n)
        for row, own in enumerate(pictures):
            try:
                _, reports = face_analyzer.analyze(as_arrays(own), on_missing="skip")
            except NoFaceError as error:
                raise NoFaceError(
                    f"person {row + 1} of this batch cannot be trained for likeness: {error}"
                ) from error
            for report in reports:
                if report.face is not None:
                    landmarks[row, report.photo] = torch.tensor(report.face.landmarks)
                    found[row, report.photo] = True
        return cls(views, landmarks, found)

    def __call__(self, base: BaseModel, batch: Batch) -> Tensor:
        """See `Objective`."""
        true, prompts, noise, t, chosen = batch  # (B*K, C, h, w), (B*K, T, W), (B*K, C, h, w), (B*K,), (K,)
        losses, guess = base.denoising(true, prompts, noise, t)  # (B*K,), (B*K, C, h, w)
        rows = self.found[:, chosen].flatten().nonzero().squeeze(1)  # (m,)
        if not len(rows):
            return losses
        landmarks = self.landmarks[:, chosen].flatten(0, 1)[rows]  # (m, 5, 2)
        half = t // 2  # (B*K,)
        with torch.no_grad():
            true_pictures = base.sketch(true[rows])  # (m, 3, S, S), decoded as the guess will be
            wanted = [view.embed(true_pictures, landmarks) for view in self.views]  # (m, E) each
            noisy = base.step(base.add_noise(true, noise, t), guess, t, half)  # (B*K, C, h, w)
        # of all pictures, with a face or not: the LoRAs in the base model count on the order of the rows
        guess = base.predict(noisy, half, prompts)  # (B*K, C, h, w)
        drawn = base.sketch(guess[rows])  # (m, 3, S, S)
        for view, true_embedding in zip(self.views, wanted, strict=True):
            unlike = 1 - cosine_similarity(view.embed(drawn, landmarks), true_embedding)  # (m,)
            losses = losses.index_add(0, rows, view.weight * unlike)  # (B*K,)
        return losses

    def to(self, device: torch.device | str) -> IdentityLoss:
        """The same on a device."""
        views = [replace(view, recogniser=view.recogniser.to(device)) for view in self.views]
        return IdentityLoss(views, self.landmarks.to(device), self.found.to(device))

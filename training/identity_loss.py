"""Train LoRAs for likeness as well: the base model's guess of a picture has to show the person's face.

The base model's own loss counts pixels, and few of them tell people apart. So its guess of the clean picture
is decoded, the face is cut out where the true picture has it, and the recogniser that conditions compares it
with the person (as PuLID, arXiv 2404.16022, section 3.3, does for an adapter, with a sampler of four steps).

Letters: B people, n pictures of each, K of them in a step, S picture side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from difflora.base_model import BaseModel
from difflora.errors import NoFaceError
from difflora.faces import FaceAnalyzer
from difflora.lora_training import Batch
from difflora.photos import as_arrays
from difflora.synthetic.recognisers import align
from training.onnx_network import OnnxNetwork


@dataclass(frozen=True, eq=False)
class IdentityLoss:
    """An `Objective`: the base model's loss, and weight x (1 - cosine of guess and person).

    Args:
        recogniser: aligned crops (m, 3, 112, 112) in [-1, 1] -> embeddings (m, E).
        person: (B, E) unit rows.
        landmarks: (B, n, 5, 2) of the true pictures, in pixels.
        found: (B, n) bool; a picture without a face counts for the base model's loss only.
        weight: of the second term.
    """

    recogniser: OnnxNetwork
    person: Tensor
    landmarks: Tensor
    found: Tensor
    weight: float

    @classmethod
    def of(
        cls, recogniser: OnnxNetwork, face_analyzer: FaceAnalyzer, pictures: Tensor, weight: float
    ) -> IdentityLoss:
        """Find the faces of pictures (B, n, 3, S, S) in [-1, 1]; a person is the mean of theirs.

        Raises:
            NoFaceError: none of somebody's pictures has a face.
        """
        count = pictures.shape[1]
        people, landmarks = [], torch.zeros(len(pictures), count, 5, 2)  # (B, n, 5, 2)
        found = torch.zeros(len(pictures), count, dtype=torch.bool)  # (B, n)
        for row, own in enumerate(pictures):
            try:
                embeddings, reports = face_analyzer.analyze(as_arrays(own), on_missing="skip")  # (m, E)
            except NoFaceError as error:
                raise NoFaceError(
                    f"person {row + 1} of this batch cannot be trained for likeness: {error}"
                ) from error
            people.append(functional.normalize(embeddings.mean(dim=0), dim=0))  # (E,)
            for report in reports:
                if report.face is not None:
                    landmarks[row, report.photo] = torch.tensor(report.face.landmarks)
                    found[row, report.photo] = True
        return cls(recogniser, torch.stack(people), landmarks, found, weight)

    def __call__(self, base: BaseModel, batch: Batch) -> Tensor:
        """See `Objective`."""
        losses, guess = base.denoising(
            batch.image_latents, batch.prompt_embeds, batch.noise, batch.timesteps
        )  # (B*K,), (B*K, C, h, w)
        rows = self.found[:, batch.chosen].flatten().nonzero().squeeze(1)  # (m,)
        if not len(rows):
            return losses
        landmarks = self.landmarks[:, batch.chosen].flatten(0, 1)[rows]  # (m, 5, 2)
        crops = align(base.sketch(guess[rows]), landmarks)  # (m, 3, 112, 112)
        faces = functional.normalize(self.recogniser(crops).float(), dim=-1)  # (m, E)
        person = self.person[rows // len(batch.chosen)]  # (m, E)
        unlike = 1 - (faces * person).sum(dim=-1)  # (m,)
        return losses.index_add(0, rows, self.weight * unlike)  # (B*K,)

    def to(self, device: torch.device | str) -> IdentityLoss:
        """The same on a device."""
        tensors = (self.person.to(device), self.landmarks.to(device), self.found.to(device))
        return IdentityLoss(self.recogniser.to(device), *tensors, self.weight)

"""Train LoRAs for likeness as well: the base model's guess of a picture has to show the same face.

The base model's own loss counts pixels, and few of them tell people apart. So its guess of the clean picture
is decoded, the face is cut out where the true picture has it, and the recogniser that conditions compares the
two (as PuLID, arXiv 2404.16022, section 3.3, does for an adapter, with a sampler of four steps).

The guess is of the base model's own making: from a noisy true picture it takes one step of the sampler to
half of the time, and guesses from there. A sampler has nothing else to start from than its own guesses, while
a noisy true picture still shows who it is, so that a LoRA would only learn to leave the face alone. [ours]

Letters: B people, n pictures of each, K of them in a step, S picture side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from difflora.base_model import BaseModel
from difflora.errors import NoFaceError
from difflora.faces import FaceAnalyzer
from difflora.lora_training import Batch
from difflora.photos import as_arrays
from difflora.synthetic.recognisers import align
from training.onnx_network import OnnxNetwork


@dataclass(frozen=True, eq=False)
class IdentityLoss:
    """An `Objective`: the base model's loss, and weight x (1 - cosine of its guess's face and the true one).

    Args:
        recogniser: aligned crops (m, 3, 112, 112) in [-1, 1] -> embeddings (m, E).
        landmarks: (B, n, 5, 2) of the true pictures, in pixels.
        found: (B, n) bool; a picture without a face counts for the base model's loss only.
        weight: of the second term.
    """

    recogniser: OnnxNetwork
    landmarks: Tensor
    found: Tensor
    weight: float

    @classmethod
    def of(
        cls, recogniser: OnnxNetwork, face_analyzer: FaceAnalyzer, pictures: Tensor, weight: float
    ) -> IdentityLoss:
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
        return cls(recogniser, landmarks, found, weight)

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
            wanted = self._face(base, true[rows], landmarks)  # (m, E), decoded as the guess will be
            noisy = base.step(base.add_noise(true, noise, t), guess, t, half)  # (B*K, C, h, w)
        # of all pictures, with a face or not: the LoRAs in the base model count on the order of the rows
        guess = base.predict(noisy, half, prompts)  # (B*K, C, h, w)
        face = self._face(base, guess[rows], landmarks)  # (m, E)
        return losses.index_add(0, rows, self.weight * (1 - cosine_similarity(face, wanted)))  # (B*K,)

    def _face(self, base: BaseModel, image_latents: Tensor, landmarks: Tensor) -> Tensor:
        """(m, C, h, w), (m, 5, 2) -> embeddings (m, E)."""
        return self.recogniser(align(base.sketch(image_latents), landmarks)).float()

    def to(self, device: torch.device | str) -> IdentityLoss:
        """The same on a device."""
        tensors = (self.landmarks.to(device), self.found.to(device))
        return IdentityLoss(self.recogniser.to(device), *tensors, self.weight)

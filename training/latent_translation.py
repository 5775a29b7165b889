"""Latents of LoRAs that were trained from zero, for an LAE of LoRAs that were predicted.

Such LoRAs say the same about a person in other numbers: of another mean and size, and with the luck of their
training, which is correlated between numbers. For the people of a library both are known, the LoRA and what
DiffLoRA predicts for them, and ridge regression from the one's latent to the other's translates. [ours]

Letters: B people, n LoRAs of the library, N photos of one person, C feature width, F width of a face
embedding, (T, Cl) a latent, P parameters of one LoRA.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from difflora.controls import RidgeRegression
from difflora.features import IdentityFeatures
from difflora.hypernetwork import LoraHypernetwork
from difflora.model import DiffLoRA

REGULARISER = 0.03
"""Chosen on the validation people of the evaluation, see training/LOG.md."""


@dataclass(frozen=True, eq=False)
class Translation:
    """Encodes LoRAs trained as a library's.

    Args:
        networks: the model's, but latents have the library's statistics.
        ridge: standardised latents (B, T * Cl) -> the model's own.
    """

    networks: LoraHypernetwork
    ridge: RidgeRegression

    @classmethod
    @torch.no_grad()
    def fit(cls, model: DiffLoRA, flat: Tensor, features: Tensor, valid: Tensor) -> Translation:
        """Learn from a library and photos of its people.

        Args:
            model: predicts LoRAs for the same people; stays as it is.
            flat: (n, P) the library's LoRAs.
            features: (n, N, C) face embedding and image features of their photos, side by side.
            valid: (n, N) photos with a face; people without one are left out.
        """
        networks = copy.deepcopy(model.checkpoint.networks)
        shown = valid.any(dim=1)  # (n,)
        latents = networks.fit_latents(flat)[shown]  # (n', T, Cl)
        width = networks.config.mif.face_width
        people = [
            IdentityFeatures(own[seen, :width], own[seen, width:])
            for own, seen in zip(features[shown], valid[shown], strict=True)
        ]
        predicted = model.sample_latents(people)  # (n', T, Cl)
        return cls(networks, RidgeRegression.fit(latents.flatten(1), predicted.flatten(1), REGULARISER))

    @torch.no_grad()
    def encode(self, flat: Tensor) -> Tensor:
        """LoRAs (B, P) -> latents (B, T, Cl) that the model decodes."""
        latents = self.networks.encode_loras(flat)  # (B, T, Cl)
        return self.ridge.predict(latents.flatten(1)).unflatten(1, latents.shape[1:])

"""The LAE's linear path: principal components, which a convolution needs thousands of steps to find.

Beside the convolutions, which see tokens, number r of the latent is the r-th principal component of the whole
LoRA, and the same component leads back. No gradient reaches it: there is no better linear map, and steps of
AdamW on one only add noise. Standardised, such latents are white: noise, a step of Adam or a wrong guess
changes a LoRA in proportion to how much people differ in that direction. [ours]

Letters: B identities, P parameters of one LoRA, S latent tokens, C latent channels, R rank of the path,
Q components.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .controls import PrincipalComponents


class LinearPath(nn.Module):
    """Normalised weights -> the first R numbers of the latent, and back, beside the convolutions."""

    def __init__(self, num_parameters: int, latent: tuple[int, int], rank: int) -> None:
        """Sizes P and (S, C), and R <= S C; without components it adds nothing."""
        super().__init__()
        self.latent = latent
        self.register_buffer("mean", torch.zeros(num_parameters))  # (P,)
        # rows of unit mean square instead of unit length: numbers around 1 survive storage in eight bits
        self.register_buffer("basis", torch.zeros(rank, num_parameters))  # (R, P)
        self.mean: Tensor
        self.basis: Tensor

    def encode(self, flat_weights: Tensor) -> Tensor:
        """(B, P) -> (B, S, C)."""
        rank, width = self.basis.shape
        coefficients = (flat_weights - self.mean) / width**0.5 @ self.basis.mT  # (B, R); no sum grows with P
        rest = self.latent[0] * self.latent[1] - rank
        return nn.functional.pad(coefficients, (0, rest)).unflatten(1, self.latent)

    def decode(self, latent: Tensor) -> Tensor:
        """(B, S, C) -> (B, P)."""
        rank, width = self.basis.shape
        return torch.addmm(self.mean, latent.flatten(1)[:, :rank] / width**0.5, self.basis)

    @torch.no_grad()
    def start_from(self, components: PrincipalComponents) -> None:
        """Become the principal component analysis of a library.

        Args:
            components: Q <= R of P numbers; the rest of the path stays unused.
        """
        self.mean.copy_(components.mean)
        self.basis.zero_()
        self.basis[: len(components.basis)] = components.basis * components.basis.shape[1] ** 0.5

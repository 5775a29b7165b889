"""The LAE's linear path: principal components, which a convolution needs thousands of steps to find.

Beside the convolutions every latent number sees every weight token through two linear maps. They start as the
principal components of the library, one for each latent number, so that training begins where principal
component analysis ends. Standardised, such latents are white: noise, a step of Adam or a wrong guess changes
a LoRA in proportion to how much people differ in that direction. [ours]

Letters: B identities, n LoRAs of a library, T weight tokens, W token width, M = T W, S latent tokens,
C latent channels, N = S C, R rank of the path, Q components.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .controls import PrincipalComponents


class LinearPath(nn.Module):
    """Tokens -> R numbers -> latent, and back; added to what the convolutions give."""

    def __init__(self, tokens: tuple[int, int], latent: tuple[int, int], rank: int) -> None:
        """Sizes (T, W) and (S, C), and R."""
        super().__init__()
        self.tokens, self.latent = tokens, latent
        inner, outer = tokens[0] * tokens[1], latent[0] * latent[1]  # M, N
        self.compress, self.to_latent = nn.Linear(inner, rank), nn.Linear(rank, outer)
        self.from_latent, self.expand = nn.Linear(outer, rank), nn.Linear(rank, inner)

    def encode(self, tokens: Tensor) -> Tensor:
        """(B, T, W) -> (B, S, C)."""
        return self.to_latent(self.compress(tokens.flatten(1))).unflatten(1, self.latent)

    def decode(self, latent: Tensor) -> Tensor:
        """(B, S, C) -> (B, T, W)."""
        return self.expand(self.from_latent(latent.flatten(1))).unflatten(1, self.tokens)

    @torch.no_grad()
    def start_from(self, components: PrincipalComponents) -> None:
        """Become the principal component analysis of a library's tokens (n, M).

        Args:
            components: Q <= R of M numbers; the rest of the path stays unused.
        """
        basis = torch.zeros_like(self.compress.weight)  # (R, M)
        basis[: len(components.basis)] = components.basis
        place = torch.eye(*self.to_latent.weight.shape).to(basis)  # (N, R): component r is latent number r
        for layer, weight, bias in (
            (self.compress, basis, -basis @ components.mean),
            (self.to_latent, place, torch.zeros_like(self.to_latent.bias)),
            (self.from_latent, place.mT, torch.zeros_like(self.from_latent.bias)),
            (self.expand, basis.mT, components.mean),
        ):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)

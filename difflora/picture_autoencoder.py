"""A linear picture autoencoder: patch PCA, which is one strided convolution and its transpose.

A learned eight-times autoencoder of this size blurs small faces away; 32 principal components of 8 x 8
patches keep 33 dB and cost nothing. Components are scaled by the square root of their standard deviation,
half way between PCA (large components dominate the loss) and whitening (noise does).

Letters: B pictures, C latent channels, h x w latent grid, p patch size.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """Linear autoencoder over non-overlapping patches with the interface of diffusers' autoencoders."""

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        latent_channels: int = 32,
        patch_size: int = 8,
        scaling_factor: float = 1.0,
        block_out_channels: tuple[int, ...] = (1, 1, 1, 1),
    ) -> None:
        """Build with untrained weights; ``fit`` sets them.

        Args:
            in_channels: picture channels.
            out_channels: picture channels.
            latent_channels: kept components C.
            patch_size: p; one latent pixel covers p x p picture pixels.
            scaling_factor: latents are multiplied by it before diffusion, as in every diffusers autoencoder.
            block_out_channels: unused; its length tells the pipeline the downscale factor 2 ** (length - 1).
        """
        super().__init__()
        self.encoder = nn.Conv2d(in_channels, latent_channels, patch_size, stride=patch_size)
        self.decoder = nn.ConvTranspose2d(latent_channels, out_channels, patch_size, stride=patch_size)

    @torch.no_grad()
    def fit(self, pictures: Tensor) -> None:
        """Set the weights to the scaled principal components of the pictures' patches.

        Args:
            pictures: (B, 3, H, W) in [-1, 1].
        """
        channels, in_channels, p, _ = self.encoder.weight.shape
        patches = nn.functional.unfold(pictures, p, stride=p)  # (B, 3pp, hw)
        rows = patches.transpose(1, 2).reshape(-1, patches.shape[1]).double()  # (Bhw, 3pp)
        colour = rows.reshape(len(rows), in_channels, -1).mean((0, 2))  # (3,) one bias per colour is all
        mean = colour.repeat_interleave(p * p)  # (3pp,) that a convolution has
        variance, basis = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
        variance, basis = variance.flip(0)[:channels], basis.flip(1)[:, :channels]  # (C,), (3pp, C)
        scale = variance.clamp_min(1e-12) ** 0.25  # (C,) sqrt of each sd
        scale = scale * (variance / scale**2).mean().sqrt()  # unit variance over all channels
        encoder = (basis / scale).T  # (C, 3pp)
        weights = {
            "encoder.weight": encoder.reshape(self.encoder.weight.shape),
            "encoder.bias": -(encoder @ mean),
            "decoder.weight": (basis * scale).T.reshape(self.decoder.weight.shape),
            "decoder.bias": colour,
        }
        self.load_state_dict(weights)

    def encode(self, pictures: Tensor, return_dict: bool = True) -> SimpleNamespace | tuple[SimpleNamespace]:
        """Pictures (B, 3, H, W) in [-1, 1] -> ``.latent_dist`` with ``mode()`` (B, C, h, w)."""
        latents = self.encoder(pictures)  # (B, C, h, w)
        distribution = SimpleNamespace(
            mode=lambda: latents, sample=lambda generator=None: latents, mean=latents
        )
        return SimpleNamespace(latent_dist=distribution) if return_dict else (distribution,)

    def decode(
        self, latents: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> SimpleNamespace | tuple[Tensor]:
        """Latents (B, C, h, w) -> ``.sample`` (B, 3, H, W) in about [-1, 1]; ``generator`` is unused."""
        pictures = self.decoder(latents)  # (B, 3, H, W)
        return SimpleNamespace(sample=pictures) if return_dict else (pictures,)

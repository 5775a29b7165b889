"""The synthetic world's picture autoencoder: patch PCA to encode, a small network to decode.

A learned eight-times encoder of this size blurs small faces away; 24 principal components of 8 x 8 patches
keep 29 dB and cost nothing. Components are scaled by the square root of their standard deviation, half way
between PCA (large components dominate the loss) and whitening (noise does). The encoder sees the picture at
half its size: latents are those of a 64 px picture, and the decoder, which has seen many people, draws 128.

Letters: B pictures, C latent channels, h x w latent grid, p patch size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from .picture_decoder import PictureDecoder


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """Linear encoder of non-overlapping patches, and its decoder, as one of diffusers' autoencoders."""

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 32,
        patch_size: int = 8,
        pooling: int = 1,
        decoder_widths: Sequence[int] = (),
        decoder_blocks: Sequence[int] = (),
        scaling_factor: float = 1.0,
        block_out_channels: Sequence[int] | None = None,
    ) -> None:
        """Build with untrained weights; ``fit`` sets the linear ones.

        Args:
            latent_channels: kept components C.
            patch_size: p.
            pooling: q; the encoder sees means of q x q pixels, so that a latent covers p q pixels a side.
            decoder_widths: channels of the decoder's network, see `PictureDecoder`; none: it is linear.
            decoder_blocks: its residual blocks.
            scaling_factor: latents are multiplied by it before diffusion, as in every diffusers autoencoder.
            block_out_channels: set from the others; its length tells the pipeline the downscale factor
                2 ** (length - 1).
        """
        super().__init__()
        levels = round(math.log2(patch_size * pooling)) + 1
        self.register_to_config(block_out_channels=(1,) * levels)
        self.pooling = pooling
        self.encoder = nn.Conv2d(3, latent_channels, patch_size, stride=patch_size)
        self.decoder = PictureDecoder(latent_channels, patch_size * pooling, decoder_widths, decoder_blocks)

    @torch.no_grad()
    def fit(self, pictures: Tensor) -> None:
        """Set encoder and linear decoder to the scaled principal components of the pictures' patches.

        Args:
            pictures: (B, 3, H, W) in [-1, 1].
        """
        channels, in_channels, p, _ = self.encoder.weight.shape
        patches = nn.functional.unfold(self._pooled(pictures), p, stride=p)  # (B, 3pp, hw)
        rows = patches.transpose(1, 2).reshape(-1, patches.shape[1]).double()  # (Bhw, 3pp)
        colour = rows.reshape(len(rows), in_channels, -1).mean((0, 2))  # (3,) one bias per colour is all
        mean = colour.repeat_interleave(p * p)  # (3pp,) that a convolution has
        variance, basis = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
        variance, basis = variance.flip(0)[:channels], basis.flip(1)[:, :channels]  # (C,), (3pp, C)
        scale = variance.clamp_min(1e-12) ** 0.25  # (C,) sqrt of each sd
        scale = scale * (variance / scale**2).mean().sqrt()  # unit variance over all channels
        encoder = (basis / scale).T  # (C, 3pp)
        patch = (basis * scale).T.reshape(self.encoder.weight.shape)  # (C, 3, p, p)
        q = self.pooling
        weights = {
            "encoder.weight": encoder.reshape(self.encoder.weight.shape),
            "encoder.bias": -(encoder @ mean),
            "decoder.linear.weight": patch.repeat_interleave(q, 2).repeat_interleave(q, 3),
            "decoder.linear.bias": colour,
        }
        self.load_state_dict(weights, strict=False)  # the decoder's network is not fitted

    def _pooled(self, pictures: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(pictures, self.pooling)  # (B, 3, H / q, W / q)

    def encode(self, pictures: Tensor, return_dict: bool = True) -> SimpleNamespace | tuple[SimpleNamespace]:
        """Pictures (B, 3, H, W) in [-1, 1] -> ``.latent_dist`` with ``mode()`` (B, C, h, w)."""
        latents = self.encoder(self._pooled(pictures))  # (B, C, h, w)
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

    def sketch(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> (B, 3, H, W) by the linear decoder alone, a hundredth of the work."""
        return self.decoder.linear(latents)

"""Latents of a linear picture autoencoder -> pictures: the linear decoder, and a small network for the rest.

Without diffusers, because ComfyUI draws with it as well.

Letters: B pictures, C latent channels, h x w latent grid, f picture pixels per latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

LAST_UPSCALE = 4
"""The last layer draws 4 x 4 pixels at once: features of every pixel would cost more than all before."""


def _start_at_zero(layer: nn.Conv2d) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class _Residual(nn.Module):
    """x + convolutions(x), which start as zero."""

    def __init__(self, width: int, convolution: type[nn.Conv2d]) -> None:
        super().__init__()
        self.first = convolution(width, width, 3, padding=1)
        self.second = convolution(width, width, 3, padding=1)
        _start_at_zero(self.second)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.relu(self.first(functional.relu(x))))


class PictureDecoder(nn.Module):
    """Linear decoder of patches, plus a residual network that draws what patches leave out.

    The network works on the latent grid and on every doubling of it but the last two, and starts as zero.

    Args:
        latent_channels: C.
        pixels_per_latent: f.
        widths: channels of the network on the latent grid, on one twice as fine, and so on; none for the
            linear decoder alone. f = 4 * 2 ** (len(widths) - 1).
        blocks: residual blocks at each of these resolutions.
        operations: where Conv2d and ConvTranspose2d come from.
    """

    def __init__(
        self,
        latent_channels: int,
        pixels_per_latent: int,
        widths: Sequence[int] = (),
        blocks: Sequence[int] = (),
        operations: Any = nn,  # noqa: ANN401 (torch.nn, or a class of the host)
    ) -> None:
        """Build with an untrained linear decoder.

        Raises:
            ValueError: the widths do not lead to the picture's size.
        """
        super().__init__()
        f = pixels_per_latent
        self.linear = operations.ConvTranspose2d(latent_channels, 3, f, stride=f)
        self.network: nn.Sequential | None = None
        if not widths:
            return
        if len(widths) != len(blocks) or LAST_UPSCALE * 2 ** (len(widths) - 1) != f:
            raise ValueError(f"widths {widths} with blocks {blocks} do not lead to {f} pixels per latent")
        layers: list[nn.Module] = [operations.Conv2d(latent_channels, widths[0], 3, padding=1)]
        for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            if level:
                layers += [operations.Conv2d(widths[level - 1], 4 * width, 1), nn.PixelShuffle(2)]
            layers += [_Residual(width, operations.Conv2d) for _ in range(count)]
        last = operations.Conv2d(widths[-1], 3 * LAST_UPSCALE**2, 3, padding=1)
        _start_at_zero(last)
        self.network = nn.Sequential(*layers, nn.ReLU(), last, nn.PixelShuffle(LAST_UPSCALE))

    def forward(self, image_latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> pictures (B, 3, f*h, f*w) in about [-1, 1]."""
        pictures = self.linear(image_latents)  # (B, 3, fh, fw)
        return pictures if self.network is None else pictures + self.network(image_latents)

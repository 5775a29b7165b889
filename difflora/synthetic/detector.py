"""The face detector of the synthetic world: a tiny SCRFD (Guo et al. 2021), as insightface expects it.

Letters: B pictures, F faces in a picture, L anchors of all levels together, c cells of one level.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDES = (8, 16, 32)
ANCHORS = 2
"""Anchors per cell. They share the cell's corner as centre; the second one takes the larger faces of its
level."""
FACE_SIDES = (22.0, 36.0, 56.0, 88.0, 136.0)
"""Face sides in pixels that separate the 3 x 2 kinds of anchors, smallest first."""


@dataclass(frozen=True)
class DetectorConfig:
    """Channels at strides 2, 4, 8, 16 and 32, and of the feature pyramid on top."""

    channels: tuple[int, int, int, int, int] = (16, 32, 48, 72, 96)
    pyramid: int = 48


def _convolution(before: int, channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
    )


class FaceDetector(nn.Module):
    """Pictures -> a score, a box and five landmarks for every anchor.

    Args:
        config: its shape.
    """

    def __init__(self, config: DetectorConfig) -> None:
        """Build backbone, pyramid and heads."""
        super().__init__()
        self.config = config
        c2, c4, c8, c16, c32 = config.channels
        self.stem = nn.Sequential(_convolution(3, c2, 2), _convolution(c2, c4, 2))
        self.stages = nn.ModuleList(
            nn.Sequential(_convolution(a, b, 2), _convolution(b, b))
            for a, b in ((c4, c8), (c8, c16), (c16, c32))
        )
        self.lateral = nn.ModuleList(nn.Conv2d(c, config.pyramid, 1) for c in (c8, c16, c32))
        self.towers = nn.ModuleList(_convolution(config.pyramid, config.pyramid) for _ in STRIDES)
        self.scores = nn.ModuleList(nn.Conv2d(config.pyramid, ANCHORS, 1) for _ in STRIDES)
        self.boxes = nn.ModuleList(nn.Conv2d(config.pyramid, ANCHORS * 4, 1) for _ in STRIDES)
        self.landmarks = nn.ModuleList(nn.Conv2d(config.pyramid, ANCHORS * 10, 1) for _ in STRIDES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.out_channels == ANCHORS:
                # most anchors see no face: start there (focal loss, Lin et al. 2017, section 4.1)
                nn.init.constant_(module.bias, -4.0)  # type: ignore[arg-type]

    def levels(self, pictures: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Raw predictions per level.

        Args:
            pictures: (B, 3, H, W) RGB, (uint8 - 127.5) / 128, H and W multiples of 32.

        Returns:
            For each stride: logits (B, c * 2, 1), distances of the box's sides from the anchor's centre
            (B, c * 2, 4) and offsets of the landmarks (B, c * 2, 10), both in strides; the anchors of a cell
            follow one another.
        """
        x = self.stem(pictures)  # (B, C, H / 4, W / 4)
        features = []
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)  # halved each time
            features.append(lateral(x))  # (B, pyramid, ., .)
        for level in (1, 0):  # context comes down from above
            features[level] = features[level] + functional.interpolate(features[level + 1], scale_factor=2.0)
        result = []
        for level, feature in enumerate(features):
            feature = self.towers[level](feature)  # (B, pyramid, h, w)
            parts = (self.scores[level](feature), self.boxes[level](feature), self.landmarks[level](feature))
            logits, distances, offsets = (
                part.permute(0, 2, 3, 1).reshape(pictures.shape[0], -1, part.shape[1] // ANCHORS)
                for part in parts
            )  # (B, c * 2, 1 | 4 | 10)
            result.append((logits, distances, offsets))
        return result

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        """The nine outputs of SCRFD: scores, boxes, landmarks, each at strides 8, 16, 32.

        Args:
            picture: (1, 3, H, W) as in ``levels``.

        Returns:
            (c * 2, 1) three times, (c * 2, 4) three times, (c * 2, 10) three times.
        """
        levels = self.levels(picture)
        scores = [logits.sigmoid().reshape(-1, 1) for logits, _, _ in levels]
        boxes = [distances.reshape(-1, 4) for _, distances, _ in levels]
        landmarks = [offsets.reshape(-1, 10) for _, _, offsets in levels]
        return (*scores, *boxes, *landmarks)


def anchors(height: int, width: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Every anchor of a picture, in the order of ``FaceDetector.levels``.

    Args:
        height: of the picture, a multiple of 32.
        width: likewise.
        device: where the tensors go.

    Returns:
        Centres (L, 2) x, y in pixels, strides (L,), and kind (L,) int64: 0 .. 5 from the smallest to the
        largest faces.
    """
    centres, strides, kinds = [], [], []
    for level, stride in enumerate(STRIDES):
        y, x = torch.meshgrid(
            torch.arange(height // stride, device=device),
            torch.arange(width // stride, device=device),
            indexing="ij",
        )
        cells = (
            torch.stack([x, y], dim=-1).view(-1, 1, 2).expand(-1, ANCHORS, 2).reshape(-1, 2) * stride
        )  # (c * 2, 2)
        centres.append(cells.float())
        strides.append(torch.full((len(cells),), float(stride), device=device))
        kinds.append(torch.arange(ANCHORS, device=device).repeat(len(cells) // ANCHORS) + level * ANCHORS)
    return torch.cat(centres), torch.cat(strides), torch.cat(kinds)

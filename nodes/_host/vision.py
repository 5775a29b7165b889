"""The host's CLIP_VISION as the image encoder of a DiffLoRA model.

Letters: N photos, C feature width, S side of a square.
"""

from __future__ import annotations

from collections.abc import Sequence

import comfy.clip_vision
import numpy as np
import torch
from torch import Tensor

from ...difflora.errors import FaceModelError
from ...difflora.features import ENCODER_BATCH, image_features, square_pixels

PROJECTION = "visual_projection.weight"


class ClipVisionEncoder:
    """Image features through the core node Load CLIP Vision; the host moves the network itself.

    Args:
        clip_vision: a CLIP vision tower with its projection.
        grid: of patches, see `image_features`; the DiffLoRA model sets the one that it needs.

    Raises:
        FaceModelError: it is of another kind (SigLIP, DINOv2) or lacks the projection.
    """

    network = None
    fingerprint = ""
    """Unknown: the host may hold the weights in another precision than the file."""

    def __init__(self, clip_vision: comfy.clip_vision.ClipVisionModel, grid: int = 0) -> None:
        """Look for the projection."""
        weights = clip_vision.get_sd()
        if PROJECTION not in weights:
            raise FaceModelError(
                "this CLIP_VISION has no projection (SigLIP and DINOv2 have none): load the CLIP vision "
                "model that the DiffLoRA checkpoint names"
            )
        self._projected, self._hidden = weights[PROJECTION].shape
        self._clip_vision, self._grid = clip_vision, grid

    @property
    def width(self) -> int:
        """Feature width C."""
        return self._projected + self._grid**2 * self._hidden

    def with_grid(self, grid: int) -> ClipVisionEncoder:
        """The same tower with another grid of patches."""
        return ClipVisionEncoder(self._clip_vision, grid)

    def encode(self, photos: Sequence[np.ndarray]) -> Tensor:
        """Encode pictures, squeezed to the tower's square exactly as our own encoder does it.

        Args:
            photos: N arrays (H, W, 3) uint8 RGB.

        Returns:
            (N, C) float32 on the CPU.
        """
        parts = [torch.zeros(0, self.width)]
        for start in range(0, len(photos), ENCODER_BATCH):
            batch = photos[start : start + ENCODER_BATCH]
            squares = torch.stack([square_pixels(photo, self._clip_vision.image_size) for photo in batch])
            output = self._clip_vision.encode_image(squares.movedim(1, -1), crop=False)  # takes (n, S, S, 3)
            features = image_features(output["image_embeds"], output["last_hidden_state"], self._grid)
            parts.append(features)  # (n, C)
        return torch.cat(parts)

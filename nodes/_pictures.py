"""Between the library's pictures and the host's IMAGE.

Letters: N pictures, H, W their size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_image_batch(pictures: Sequence[np.ndarray | Image.Image]) -> Tensor:
    """N pictures (H, W, 3) of 8 bits and one size -> IMAGE (N, H, W, 3) in 0 .. 1."""
    return torch.stack([torch.from_numpy(np.array(picture)).float() / 255.0 for picture in pictures])

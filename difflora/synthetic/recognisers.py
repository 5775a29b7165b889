"""The recognisers of the synthetic world: two that condition and train, and one that only judges.

``Recogniser`` has the interface of ArcFace (Deng et al. 2019): aligned 112 x 112 crops in, 512 numbers out;
it is exported to the ONNX pack. A second one of its kind sees whole photos, hair and all, and only trains
(`training.identity_loss`). ``EvaluationRecogniser`` differs from both in architecture and seed, and nothing
that it says ever reaches a model: what it measures cannot have been optimised for it.

Letters: B pictures, E embedding width, S side of a crop.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import CheckpointError
from ..files import load_safetensors, save_safetensors

CROP_PX = 112
ARCFACE_LANDMARKS = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
"""Where ArcFace puts the five landmarks in its crop, in pixels."""
PICTURE_PX = 64


def alignment(landmarks: Tensor) -> Tensor:
    """Least-squares similarity transform from a picture's landmarks to ArcFace's.

    With points as complex numbers q = a p + b, a = sum(conj(p) q) / sum(|p|^2) about the means: Umeyama
    (1991) in 2-D.

    Args:
        landmarks: (B, 5, 2) x, y in pixels.

    Returns:
        (B, 2, 3) affine matrices from picture pixels to crop pixels.
    """
    target = landmarks.new_tensor(ARCFACE_LANDMARKS)  # (5, 2)
    source_mean, target_mean = landmarks.mean(1), target.mean(0)  # (B, 2), (2,)
    p, q = landmarks - source_mean[:, None], target - target_mean  # (B, 5, 2), (5, 2)
    power = p.square().sum((1, 2))  # (B,)
    real = (p * q).sum((1, 2)) / power  # (B,)
    imaginary = (p[..., 0] * q[:, 1] - p[..., 1] * q[:, 0]).sum(1) / power  # (B,)
    linear = torch.stack([real, -imaginary, imaginary, real], dim=-1).view(-1, 2, 2)  # (B, 2, 2)
    shift = target_mean - (linear @ source_mean[..., None])[..., 0]  # (B, 2)
    return torch.cat([linear, shift[..., None]], dim=-1)  # (B, 2, 3)


def align(pictures: Tensor, landmarks: Tensor, size: int = CROP_PX) -> Tensor:
    """Cut out aligned faces, as insightface's ``norm_crop`` does (a test compares them).

    Args:
        pictures: (B, 3, H, W), any range.
        landmarks: (B, 5, 2) x, y in pixels.
        size: side S of the crops.

    Returns:
        (B, 3, S, S); what lies outside the picture is 0.
    """
    height, width = pictures.shape[2:]
    matrix = alignment(landmarks)  # (B, 2, 3)
    inverse = torch.linalg.inv(matrix[:, :, :2])  # (B, 2, 2)
    line = torch.arange(size, device=pictures.device, dtype=landmarks.dtype) * (CROP_PX / size)
    y, x = torch.meshgrid(line, line, indexing="ij")  # (S, S) twice
    crop = torch.stack([x, y], dim=-1).view(1, -1, 2) - matrix[:, None, :, 2]  # (B, S*S, 2)
    source = crop @ inverse.transpose(1, 2)  # (B, S*S, 2) pixel indices
    extent = source.new_tensor([width, height])  # (2,)
    grid = ((source + 0.5) / extent * 2.0 - 1.0).view(-1, size, size, 2)  # (B, S, S, 2)
    return functional.grid_sample(pictures, grid.to(pictures.dtype), align_corners=False)


@dataclass(frozen=True)
class RecogniserConfig:
    """A plain strided convolutional net for pictures of one side.

    Channels of its layers, their strides, the widths at the end, and that side.

    The prototype measured TPR .93 at FPR 1e-3 for this kind with BatchNorm, .68 for a residual net with
    GroupNorm.
    """

    channels: tuple[int, ...] = (32, 64, 128, 128, 192)
    strides: tuple[int, ...] = (4, 2, 2, 1, 2)
    squeeze: int = 96
    width: int = 512
    side: int = CROP_PX


class Recogniser(nn.Module):
    """Aligned crops, or whole pictures of another side, -> embeddings; that of the synthetic face pack.

    Args:
        config: its shape.
    """

    def __init__(self, config: RecogniserConfig) -> None:
        """Build the layers one after another."""
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        before, side = 3, config.side
        for channels, stride in zip(config.channels, config.strides, strict=True):
            kernel = 7 if stride == 4 else 3  # a crop shows few true pixels: it can be shrunk at once
            layers += [
                nn.Conv2d(before, channels, kernel, stride, kernel // 2, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
            before, side = channels, -(-side // stride)
        layers += [nn.Conv2d(before, config.squeeze, 1, bias=False), nn.BatchNorm2d(config.squeeze)]
        self.body = nn.Sequential(*layers)
        self.out = nn.Linear(config.squeeze * side * side, config.width)

    def forward(self, crops: Tensor) -> Tensor:
        """Embed.

        Args:
            crops: (B, 3, S, S) RGB in [-1, 1], S the config's side.

        Returns:
            (B, 512), not normalised: insightface does that.
        """
        x = self.body(crops)  # (B, squeeze, 4, 4)
        return self.out(x.flatten(1))  # (B, 512)


def save_half(path: str | Path, network: nn.Module, config: object) -> Path:
    """Write a judge: its weights in float16 and its config dataclass, as ``.safetensors``."""
    tensors = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in network.state_dict().items()
    }
    return save_safetensors(path, tensors, {"config": json.dumps(asdict(config))})  # type: ignore[call-overload]


@dataclass(frozen=True)
class EvaluationRecogniserConfig:
    """A residual net over the whole picture: channels after each halving, and the embedding width."""

    channels: tuple[int, ...] = (40, 80, 128, 192)
    width: int = 256


class _Residual(nn.Module):
    """Halve the resolution with a convolution, then add one residual pair."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(before, channels, 4, 2, 1, bias=False), nn.BatchNorm2d(channels))
        self.pair = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=8, bias=False),
            nn.BatchNorm2d(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.down(x))  # (B, channels, H / 2, W / 2)
        return functional.silu(x + self.pair(x))  # (B, channels, H / 2, W / 2)


class EvaluationRecogniser(nn.Module):
    """Whole pictures -> unit embeddings, for measuring only.

    There is no detector and no alignment that could fail on the way.

    Args:
        config: its shape.
    """

    def __init__(self, config: EvaluationRecogniserConfig) -> None:
        """Build a residual stage per halving."""
        super().__init__()
        self.config = config
        widths = (3, *config.channels)
        self.body = nn.Sequential(*(_Residual(a, b) for a, b in pairwise(widths)))
        side = PICTURE_PX // 2 ** len(config.channels)
        self.out = nn.Linear(config.channels[-1] * side * side, config.width)

    def forward(self, pictures: Tensor) -> Tensor:
        """Embed.

        Args:
            pictures: (B, 3, 64, 64) RGB in [-1, 1].

        Returns:
            (B, E) rows of unit length: the dot product of two is their similarity.
        """
        x = self.body(pictures)  # (B, channels, 4, 4)
        return functional.normalize(self.out(x.flatten(1)), dim=-1)  # (B, E)

    def save(self, path: str | Path) -> Path:
        """Write weights (float16) and config to a ``.safetensors`` file."""
        return save_half(path, self, self.config)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> EvaluationRecogniser:
        """Read what ``save`` wrote.

        Raises:
            CheckpointError: the file is missing, damaged or something else.
        """
        tensors, metadata = load_safetensors(path, device)
        try:
            settings = json.loads(metadata["config"])
            model = cls(EvaluationRecogniserConfig(tuple(settings.pop("channels")), **settings))
            model.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} is no evaluation recogniser ({error}): make it with training.train_world"
            ) from error
        return model.float().train(False).requires_grad_(False).to(device)

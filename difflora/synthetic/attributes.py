"""Does a picture show what the prompt says? A classifier of every scene attribute, for measuring only.

Letters: B pictures, A attributes, K classes of one attribute.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files import load_safetensors
from .recognisers import PICTURE_PX, save_half
from .scenes import ATTRIBUTES, Scene


@dataclass(frozen=True)
class AttributeConfig:
    """Shape of the classifier.

    Args:
        channels: after each halving.
        width: of the layer that all heads share.
        classes: name of each attribute and how many classes it has.
        depth: convolutions per resolution. A second one is for the mouth: sad and neutral ones
            differ by two pixels.
    """

    channels: tuple[int, ...] = (32, 64, 96, 128)
    width: int = 192
    classes: tuple[tuple[str, int], ...] = tuple((name, len(words)) for name, words in ATTRIBUTES.items())
    depth: int = 1


def _convolution(before: int, channels: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(before, channels, 3, stride, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    ]


class AttributeClassifier(nn.Module):
    """One small convolutional net with a head per attribute.

    Args:
        config: its shape.
    """

    def __init__(self, config: AttributeConfig) -> None:
        """Build the shared layers, then a head per attribute."""
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        for before, channels in pairwise((3, *config.channels)):
            layers += _convolution(before, channels, 2)
            for _ in range(config.depth - 1):
                layers += _convolution(channels, channels, 1)
        side = PICTURE_PX // 2 ** len(config.channels)
        layers += [
            nn.Flatten(),
            nn.Linear(config.channels[-1] * side * side, config.width, bias=False),
            nn.BatchNorm1d(config.width),
            nn.ReLU(inplace=True),
        ]
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(config.width, classes) for name, classes in config.classes}
        )

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Score every class.

        Args:
            pictures: (B, 3, 64, 64) RGB in [-1, 1].

        Returns:
            Attribute -> (B, K) logits.
        """
        x = self.body(pictures)  # (B, width)
        return {name: head(x) for name, head in self.heads.items()}

    @torch.no_grad()
    def predict(self, pictures: Tensor) -> dict[str, Tensor]:
        """Attribute -> (B,) int64 index of the most likely class, for pictures as in ``forward``."""
        return {name: logits.argmax(-1) for name, logits in self(pictures).items()}

    def save(self, path: str | Path) -> Path:
        """Write weights (float16) and config to a ``.safetensors`` file."""
        return save_half(path, self, self.config)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> AttributeClassifier:
        """Read what ``save`` wrote.

        Raises:
            CheckpointError: the file is missing, damaged, something else, or was trained for other
                attributes.
        """
        tensors, metadata = load_safetensors(path, device)
        try:
            settings = json.loads(metadata["config"])
            config = AttributeConfig(
                tuple(settings.pop("channels")),
                classes=tuple(map(tuple, settings.pop("classes"))),
                **settings,
            )
            model = cls(config)
            model.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} is no attribute classifier ({error}): make it with training.train_world"
            ) from error
        if config.classes != AttributeConfig().classes:
            raise CheckpointError(
                f"{path} knows other scene attributes than this version: run training.train_world again"
            )
        return model.float().train(False).requires_grad_(False).to(device)


def prompt_accuracy(classifier: AttributeClassifier, pictures: Tensor, scene: Scene) -> dict[str, Tensor]:
    """Which attributes of which pictures are as the prompt said.

    Args:
        classifier: a trained classifier.
        pictures: (B, 3, 64, 64) RGB in [-1, 1].
        scene: the B scenes that the prompts described.

    Returns:
        Attribute -> (B,) float32, 1 where the picture shows it and 0 elsewhere, not a number where the prompt
        does not ask for it (see `Scene.asked`), and only attributes that some prompt asks for. Their means
        (`torch.nanmean`) are the accuracies.
    """
    predicted = classifier.predict(pictures)
    right = {}
    for name, asked in scene.asked().items():
        classes = predicted[name]  # (B,)
        if asked.any():
            shows = (classes == getattr(scene, name).to(classes.device)).float()  # (B,)
            right[name] = shows.masked_fill(~asked.to(classes.device), torch.nan)
    return right

"""Measures of generated pictures: is it the person, and does it show what the prompt said?

The evaluation recogniser and the attribute classifier judge; nothing that they say reaches a model.
Letters: B people, K pictures of each, E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from . import world
from .attributes import AttributeClassifier, prompt_accuracy
from .recognisers import PICTURE_PX, EvaluationRecogniser
from .renderer import PHOTO_PX, render
from .scenes import Scene, sample_scenes

NUM_TARGET_RENDERS = 16
"""True pictures whose mean embedding stands for a person: one alone would reward copying its pose."""
TARGET_SEED = 77_001
"""Scenes of those pictures; reference photos come from other seeds."""


def as_judged(pictures: Tensor) -> Tensor:
    """Pictures (n, 3, H, W) at the size that the judges have learned, (n, 3, 64, 64)."""
    return functional.interpolate(pictures, (PICTURE_PX, PICTURE_PX), mode="area")  # (n, 3, 64, 64)


def mean_embeddings(traits: Tensor, embed: Callable[[Tensor], Tensor]) -> Tensor:
    """What people look like to a recogniser: the normalised mean embedding of true renders.

    Args:
        traits: (B, traits).
        embed: pictures (n, 3, H, W) in [-1, 1] -> embeddings (n, E).

    Returns:
        (B, E) rows of unit length.
    """
    scenes = sample_scenes(NUM_TARGET_RENDERS, TARGET_SEED)
    means = []
    for person in traits:
        pictures = render(person.expand(len(scenes), -1), scenes, PHOTO_PX).pictures * 2 - 1  # (n, 3, H, W)
        means.append(embed(pictures).mean(dim=0))  # (E,)
    return functional.normalize(torch.stack(means), dim=-1)  # (B, E)


@dataclass(frozen=True, eq=False)
class Judge:
    """The two networks that only judge."""

    recogniser: EvaluationRecogniser
    classifier: AttributeClassifier

    @classmethod
    def load(cls, device: torch.device | str = "cpu") -> Judge:
        """The shipped networks."""
        return cls(
            EvaluationRecogniser.load(world.EVALUATION_RECOGNISER, device),
            AttributeClassifier.load(world.ATTRIBUTE_CLASSIFIER, device),
        )

    @torch.no_grad()
    def targets(self, traits: Tensor) -> Tensor:
        """What people look like to the evaluation recogniser, see `mean_embeddings`.

        Args:
            traits: (B, traits).

        Returns:
            (B, E) rows of unit length.
        """
        return mean_embeddings(traits, self.embed)  # (B, E)

    @torch.no_grad()
    def embed(self, pictures: Tensor) -> Tensor:
        """Pictures (n, 3, H, W) in [-1, 1] -> embeddings (n, E), unit rows."""
        return self.recogniser(as_judged(pictures))  # (n, E)

    @torch.no_grad()
    def similarity(self, pictures: Tensor, targets: Tensor) -> Tensor:
        """Cosine between pictures and the person that they should show.

        Args:
            pictures: (B, K, 3, H, W) in [-1, 1].
            targets: (B, E), from `targets`.

        Returns:
            (B, K) in [-1, 1].
        """
        embedding = self.embed(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])  # (B, K, E)
        return (embedding * targets[:, None]).sum(dim=-1)  # (B, K)

    @torch.no_grad()
    def prompt_accuracy(self, pictures: Tensor, scenes: Scene) -> dict[str, Tensor]:
        """Which attributes of the prompts the pictures show.

        Args:
            pictures: (B, K, 3, H, W) in [-1, 1].
            scenes: the K scenes that the prompts describe, the same for everybody.

        Returns:
            Attribute -> (B, K), 1 where it is as the prompt said, else 0; not a number where the prompt asks
            for nothing that can be seen, see `attributes.prompt_accuracy`.
        """
        people, count = pictures.shape[:2]
        repeated = scenes[torch.arange(count).repeat(people)]  # B*K scenes
        right = prompt_accuracy(self.classifier, as_judged(pictures.flatten(0, 1)), repeated)
        return {name: values.view(people, count) for name, values in right.items()}  # (B, K) each

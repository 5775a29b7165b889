"""What surrounds a synthetic person in a picture, and the prompt that says so.

Letters: B pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from ..errors import DiffLoRAError

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "expression": ("neutral", "smiling", "sad", "surprised", "angry"),
    "pose": ("facing left", "facing forward", "facing right"),
    "accessory": ("", "wearing glasses", "wearing sunglasses", "wearing a hat"),
    "light": ("soft light", "lit from the left", "lit from the right", "golden light"),
    "background": (
        "gray background",
        "white background",
        "red background",
        "blue background",
        "green background",
        "yellow background",
    ),
    "clothes": ("white shirt", "black shirt", "red shirt", "blue shirt", "green shirt", "purple shirt"),
    "style": ("", "sepia", "pencil sketch"),
}
"""Attribute -> the phrase of each class. An empty phrase means that saying nothing means this class."""

COLOURFUL = ("light", "background", "clothes")
"""Attributes that only a colour photo shows."""

JITTER = ("yaw", "pitch", "roll", "shift_x", "shift_y", "zoom", "strength", "gaze", "tint", "level")
"""Continuous nuisance inside each class, each in [-1, 1]."""

STUDIO = 0.3
"""Default jitter: portraits of a studio. No prompt names jitter; a base model this small blurs over it."""

PROMPT_START = "a photo of a person"


@dataclass(frozen=True)
class Scene:
    """Nuisance of B pictures: a class index (B,) int64 per attribute and jitter (B, len(JITTER))."""

    expression: Tensor
    pose: Tensor
    accessory: Tensor
    light: Tensor
    background: Tensor
    clothes: Tensor
    style: Tensor
    jitter: Tensor

    def __len__(self) -> int:
        """Number of pictures B."""
        return self.expression.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Scene:
        """The scenes at a slice or an index tensor."""
        return Scene(*(getattr(self, field.name)[index] for field in fields(self)))

    def to(self, device: torch.device | str) -> Scene:
        """The same scenes on another device."""
        return Scene(*(getattr(self, field.name).to(device) for field in fields(self)))

    def phrases(self) -> list[list[str]]:
        """B lists with one phrase per attribute that has something to say."""
        columns = {name: getattr(self, name).tolist() for name in ATTRIBUTES}
        return [
            [words[columns[name][row]] for name, words in ATTRIBUTES.items() if words[columns[name][row]]]
            for row in range(len(self))
        ]

    def asked(self) -> dict[str, Tensor]:
        """Attribute -> (B,) bool: does the prompt ask for something that the picture can show?

        A sepia print or a sketch has no colours to show, and a prompt of a colour photo asks for no style.
        """
        styled = self.style != 0  # (B,)
        whether = {"style": styled, **dict.fromkeys(COLOURFUL, ~styled)}
        return {name: whether.get(name, torch.ones_like(styled)) for name in ATTRIBUTES}

    def prompts(self) -> list[str]:
        """The full prompt of every picture."""
        return [", ".join([PROMPT_START, *phrases]) for phrases in self.phrases()]


def cat_scenes(scenes: list[Scene]) -> Scene:
    """Several scenes after one another."""
    return Scene(*(torch.cat([getattr(s, field.name) for s in scenes]) for field in fields(Scene)))


def sample_scenes(count: int, seed: int, jitter: float = STUDIO, styled: float = 0.0) -> Scene:
    """Random scenes: every class equally likely, jitter uniform; colour photos unless asked otherwise.

    Args:
        count: number of pictures B.
        seed: the same seed gives the same scenes, in colour or not.
        jitter: largest jitter; 1 is the whole range, for networks that have to bear anything.
        styled: share of pictures in another style than a colour photo's, all of these equally likely.
    """
    generator = np.random.default_rng([seed, 0x5CE9E])
    classes = {
        name: torch.from_numpy(generator.integers(0, len(words), count))
        for name, words in ATTRIBUTES.items()
        if name != "style"
    }
    shifts = torch.from_numpy(generator.uniform(-1.0, 1.0, (count, len(JITTER)))).float()  # (B, J)
    others = generator.integers(1, len(ATTRIBUTES["style"]), count)
    style = torch.from_numpy(np.where(generator.random(count) < styled, others, 0))  # (B,)
    return Scene(**classes, style=style, jitter=jitter * shifts)


def scene_for(count: int = 1, seed: int | None = None, **attributes: str) -> Scene:
    """Scenes with chosen attributes, e.g. ``scene_for(expression="smiling", background="red background")``.

    Args:
        count: number of equal scenes.
        seed: jitter of the scenes; None means no jitter at all.
        attributes: attribute name -> its phrase; what is not named is neutral (class 0; pose forward).

    Raises:
        DiffLoRAError: for an unknown attribute or phrase.
    """
    chosen = {"pose": "facing forward", **attributes}
    for name, phrase in chosen.items():
        if name not in ATTRIBUTES or phrase not in ATTRIBUTES[name]:
            known = ", ".join(f"{key}: {' | '.join(words)}" for key, words in ATTRIBUTES.items())
            raise DiffLoRAError(f"unknown scene attribute {name}={phrase!r}: known are {known}")
    jitter = torch.zeros(count, len(JITTER)) if seed is None else sample_scenes(count, seed).jitter
    classes = [
        torch.full((count,), words.index(chosen.get(name, words[0]))) for name, words in ATTRIBUTES.items()
    ]
    return Scene(*[*classes, jitter])

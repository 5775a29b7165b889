"""Who the synthetic people are: a point in a box of continuous traits, and words for it.

Letters: B people, I identity traits.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import DiffLoRAError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Trait:
    """One continuous identity trait in [-1, 1] and the words for its range, lowest first."""

    name: str
    words: tuple[str, ...]


def _scale(low: str, high: str) -> tuple[str, ...]:
    return (f"very {low}", low, "", high, f"very {high}")


TRAITS: tuple[Trait, ...] = (
    Trait("skull_width", _scale("narrow head", "wide head")),
    Trait("face_length", _scale("short face", "long face")),
    Trait("jaw_width", _scale("narrow jaw", "wide jaw")),
    Trait("chin", _scale("round chin", "pointed chin")),
    Trait("skin_tone", ("deep skin", "brown skin", "tan skin", "light skin", "pale skin")),
    Trait("skin_warmth", _scale("cool complexion", "warm complexion")),
    Trait("eye_size", _scale("small eyes", "large eyes")),
    Trait("eye_spacing", _scale("close eyes", "distant eyes")),
    Trait("eye_height", _scale("low eyes", "high eyes")),
    Trait("eye_tilt", _scale("drooping eyes", "slanted eyes")),
    Trait("eye_roundness", _scale("thin eyes", "round eyes")),
    Trait(
        "iris", ("dark irises", "brown irises", "hazel irises", "green irises", "blue irises", "gray irises")
    ),
    Trait("brow_thickness", _scale("thin brows", "thick brows")),
    Trait("brow_angle", _scale("sloping brows", "arched brows")),
    Trait("brow_height", _scale("low brows", "high brows")),
    Trait("nose_width", _scale("slim nose", "broad nose")),
    Trait("nose_length", _scale("short nose", "long nose")),
    Trait("mouth_width", _scale("small mouth", "large mouth")),
    Trait("lip_fullness", _scale("thin lips", "full lips")),
    Trait("mouth_height", _scale("low mouth", "high mouth")),
    Trait("lip_colour", ("bare lips", "rosy lips", "red lips")),
    Trait(
        "hair_tone",
        ("black hair", "dark hair", "chestnut hair", "auburn hair", "blond hair", "platinum hair"),
    ),
    Trait("hair_warmth", _scale("ash tint", "copper tint")),
    Trait("hair_length", ("cropped cut", "short cut", "bob cut", "long cut")),
    Trait("hair_volume", _scale("flat hair", "big hair")),
    Trait("hairline", _scale("high hairline", "low fringe")),
    Trait("hair_parting", ("left parting", "", "right parting")),
    Trait("hair_curl", ("straight strands", "wavy strands", "curly strands")),
    Trait("ear_size", _scale("small ears", "large ears")),
    Trait("freckles", ("", "", "freckles", "many freckles")),
    Trait("beard", ("", "", "", "stubble", "full beard")),
    Trait("moustache", ("", "", "", "moustache")),
    Trait("blush", ("", "", "rosy cheeks")),
)
NUM_TRAITS = len(TRAITS)
TRAIT_INDEX = {trait.name: index for index, trait in enumerate(TRAITS)}


def sample_people(split: str, start: int, count: int) -> Tensor:
    """Traits of people ``start .. start + count`` of a split; person k is the same in every call.

    Args:
        split: one of ``SPLITS``; the splits share nobody.
        start: index of the first person.
        count: how many people.

    Returns:
        (count, NUM_TRAITS) float32, uniform in [-1, 1].

    Raises:
        DiffLoRAError: for an unknown split or a negative index.
    """
    if split not in SPLITS:
        raise DiffLoRAError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    if start < 0 or count < 0:
        raise DiffLoRAError(f"people {start} .. {start + count} do not exist: indices start at 0")
    bits = np.random.PCG64(zlib.crc32(f"people/{split}".encode()))
    bits.advance(start * NUM_TRAITS)  # one 64-bit draw per number
    numbers = np.random.Generator(bits).random((count, NUM_TRAITS))  # (B, I)
    return torch.from_numpy(numbers * 2.0 - 1.0).float()


def describe_traits(traits: Tensor) -> list[list[str]]:
    """The phrases that name each person's traits, as a web caption might.

    Args:
        traits: (B, NUM_TRAITS) in [-1, 1].

    Returns:
        B lists of phrases such as "blond hair"; unremarkable traits have none.
    """
    people = []
    for row in traits.tolist():
        phrases = []
        for trait, value in zip(TRAITS, row, strict=True):
            level = min(int((value + 1.0) / 2.0 * len(trait.words)), len(trait.words) - 1)
            if trait.words[max(level, 0)]:
                phrases.append(trait.words[max(level, 0)])
        people.append(phrases)
    return people

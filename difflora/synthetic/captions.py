"""Captions for base-model training: the scene's prompt, sometimes with words for the person, as on the web.

Half of the captions name some of the traits ("blond hair", "wide jaw"). That is what makes a text-to-image
model personalisable at all: it learns that faces vary and in which directions, while the bare
"a photo of a person" stays open for a LoRA to fill.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .people import TRAITS, describe_traits
from .scenes import ATTRIBUTES, PROMPT_START, Scene

DROP_ALL, NAME_TRAITS, DROP_PHRASE, MAX_TRAITS = 0.08, 0.5, 0.12, 24


def vocabulary() -> list[str]:
    """Every phrase that a caption can hold: what the tokenizer has to know."""
    scene = [phrase for words in ATTRIBUTES.values() for phrase in words if phrase]
    return [PROMPT_START, ",", *scene, *(word for trait in TRAITS for word in trait.words if word)]


def sample_captions(traits: Tensor, scene: Scene, seed: int) -> list[str]:
    """One caption for every picture.

    Args:
        traits: (B, NUM_TRAITS).
        scene: B scenes.
        seed: which phrases are kept, and their order.

    Returns:
        B captions: empty (for guidance), a prompt, or a prompt with trait phrases.
    """
    generator = np.random.default_rng([seed, 0xCA97])
    always = {phrase for name in ("accessory", "style") for phrase in ATTRIBUTES[name] if phrase}
    captions = []
    for phrases, person in zip(scene.phrases(), describe_traits(traits), strict=True):
        if generator.random() < DROP_ALL:
            captions.append("")
            continue
        # silence about accessories means none, and about style a colour photo, so these are always named
        kept = [p for p in phrases if p in always or generator.random() > DROP_PHRASE]
        if generator.random() < NAME_TRAITS:
            generator.shuffle(person)
            kept += person[: int(generator.integers(4, MAX_TRAITS + 1))]
        captions.append(", ".join([PROMPT_START, *kept]))
    return captions

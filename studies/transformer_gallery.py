"""Pictures of everybody with any LoRAs, as two recognisers see them; what was measured once is kept.

Letters: B people, K pictures, E embedding width, L prompt tokens, W text width, P parameters of one LoRA.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difflora.base_model import BaseModel
from difflora.diffusion import draw_noise
from difflora.files import atomic_save
from difflora.hypernetwork import LoraHypernetwork
from difflora.layout import SharedDown
from training.evaluation_pictures import Likeness, LoraBatch, draw_people


def similarity(judge: Likeness, pictures: Tensor, targets: Tensor) -> Tensor:
    """Cosine of pictures (B, K, 3, H, W) with what the people look like (B, E) -> (B, K)."""
    embedding = judge.embed(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])  # (B, K, E)
    return (embedding * targets[:, None]).sum(dim=-1)


def short_digest(facts: Sequence[object]) -> str:
    """Of everything that decides a measurement."""
    return hashlib.sha256(f"{list(facts)}".encode()).hexdigest()[:12]


def remember(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Read a JSON file, or make and write it: a study that was stopped goes on."""
    if not path.is_file():
        text = json.dumps(make())
        atomic_save(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return json.loads(path.read_text(encoding="utf-8"))


@dataclass(frozen=True, eq=False)
class Gallery:
    """Draws everybody with their LoRAs, from the same noise and prompts for every row, and measures.

    Args:
        base: draws.
        shared_down: module -> lora_down.
        judges: "conditioning", which chooses, and "evaluation", which is reported.
        targets: judge -> what the B people look like to it (B, E).
        prompts: of the K pictures of each.
        picture_steps: of the base model's sampler.
        seed: of the noise.
        cache: folder of finished measurements.
    """

    base: BaseModel
    shared_down: SharedDown | None
    judges: Mapping[str, Likeness]
    targets: Mapping[str, Tensor]
    prompts: Sequence[str]
    picture_steps: int
    seed: int
    cache: Path

    def draw(
        self, networks: LoraHypernetwork, flat: Tensor, strength: float, prompts: Sequence[str]
    ) -> Tensor:
        """Pictures (B, K, 3, H, W) in [-1, 1] with LoRAs (B, P)."""
        generator = torch.Generator().manual_seed(self.seed)
        noise = draw_noise((len(flat), len(prompts), *self.base.latent_shape), generator, self.base.device)
        loras = LoraBatch(networks.layout, self.shared_down, flat, strength)
        embeds = self.base.encode_prompts(list(prompts))  # (K, L, W)
        return draw_people(self.base, embeds, noise, self.picture_steps, loras)

    def measure(self, networks: LoraHypernetwork, flat: Tensor, strengths: Sequence[float]) -> dict[str, Any]:
        """Strength -> judge -> similarity of each person, a mean over pictures; drawn now or before."""
        content = hashlib.sha256(flat.cpu().contiguous().numpy().tobytes()).hexdigest()
        facts = [content, list(self.prompts), self.picture_steps, self.seed, self.base.fingerprint]

        def make(strength: float) -> dict[str, Any]:
            pictures = self.draw(networks, flat, strength, self.prompts)  # (B, K, 3, H, W)
            return {
                name: similarity(judge, pictures, self.targets[name]).mean(dim=1).tolist()
                for name, judge in self.judges.items()
            }

        return {
            f"{strength:g}": remember(
                self.cache / f"{short_digest([*facts, strength])}.json", partial(make, strength)
            )
            for strength in strengths
        }

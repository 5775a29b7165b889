"""The libraries that studies compare: how each is made, and reading them.

Letters: B people of a shard, n people, P parameters of one LoRA, R rank.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from difflora.base_model import BaseModel
from difflora.layout import LoraLayout, SharedDown, init_shared_down
from difflora.lora_training import train_loras
from training.base_presets import TARGETS
from training.common import open_run, read_config
from training.evaluation_pictures import LoraBatch
from training.lora_library import SPLITS, LibraryConfig, deal_shards, load_library
from training.make_loras import make_shards, prepare_shared_down
from training.pictures import RenderedPeople

OWN_SEED = 10_000
"""Seeds of luck, or of a `lora_down`, that belongs to one person: this plus the person's number."""
PROBE_STEPS, PROBE_PEOPLE = 2, 16
"""Optimiser steps that are timed, and for how many people at once."""
RANDOM_DOWN = LibraryConfig(down="random", learning_rate=0.1)
"""At the rate that suited it best (training/LOG.md)."""


@dataclass(frozen=True)
class Setting:
    """One way to make a library.

    Args:
        label: for tables.
        making: see `LibraryConfig`.
        own_down: every person has a random, frozen `lora_down` of their own.
        gauge: the default library's LoRAs, each written with other factors of the same product.
    """

    label: str
    making: LibraryConfig
    own_down: bool = False
    gauge: bool = False


SETTINGS = {
    "default": Setting(
        "learned, shared lora_down; rank 4, attention + ff, 60 steps (default)", LibraryConfig()
    ),
    "random_gauge": Setting(
        "the default LoRAs, each in a random gauge (same effect)", LibraryConfig(), gauge=True
    ),
    "random_down": Setting("random, shared lora_down", RANDOM_DOWN),
    "own_down": Setting("random lora_down of each person's own", RANDOM_DOWN, own_down=True),
    "rank_1": Setting("rank 1", LibraryConfig(rank=1)),
    "attention": Setting("attention only", LibraryConfig(targets="attention")),
    "attention_rank_1": Setting("attention only, rank 1", LibraryConfig(targets="attention", rank=1)),
    # 64 is all that modules of 64 channels have. Adam moves every number as far as at rank 4, so that the
    # change of a weight grows with the root of the rank: 0.1 * sqrt(4 / 64)
    "attention_rank_64": Setting(
        "attention only, rank 64 (full, where 64 wide)",
        replace(RANDOM_DOWN, targets="attention", rank=64, learning_rate=0.025),
    ),
    "steps_30": Setting("30 steps", LibraryConfig(steps=30)),
    "steps_120": Setting("120 steps", LibraryConfig(steps=120)),
}


# --- making libraries -------------------------------------------------------------------------------------


def make_library(
    base: BaseModel, setting: Setting, folder: Path, counts: Mapping[str, int], seed: int
) -> None:
    """Train the LoRAs of people 0 .. count - 1 of each split that are not there yet.

    Args:
        base: frozen base model.
        setting: how.
        folder: of the library, laid out as `training.make_loras` does.
        counts: split -> people.
        seed: as there.
    """
    making = setting.making
    layout = LoraLayout.from_model(base.denoiser, TARGETS[making.targets], making.rank)
    learned = (making.down_people, making.down_steps) if making.down == "learned" else ()
    like = read_config(folder).get("like") if (folder / "config.json").is_file() else None
    open_run(  # the same facts as make_loras: a library that it made is taken over
        folder,
        {
            "base_model": base.name,
            "base_model_fingerprint": base.fingerprint,
            "layout": layout.to_json(),
            "training": asdict(making.training()),
            "people": RenderedPeople("train", making.pictures, seed).description(),
            "down": [making.down, *learned],
            "batch": making.batch,
            "seed": seed,
        }
        | ({"own_down": True} if setting.own_down else {})
        | ({"like": like} if like else {}),
    )
    for split, count in counts.items():
        people = RenderedPeople(split, making.pictures, seed)
        shared = prepare_shared_down(folder, base, layout, people, making, seed)
        for shard in deal_shards(folder, split, count, making.batch):
            down = own_down(layout, split, shard.people) if setting.own_down else shared
            make_shards([shard], base, layout, down, people, making.training(), seed)


def own_down(layout: LoraLayout, split: str, people: Sequence[int]) -> dict[str, Tensor]:
    """A random `lora_down` for each person: module -> (B, R, in)."""
    first = OWN_SEED * (1 + SPLITS.index(split))
    downs = [init_shared_down(layout, first + person) for person in people]
    return {name: torch.stack([down[name] for down in downs]) for name in downs[0]}  # (B, R, in)


def random_gauge(
    layout: LoraLayout, flat: Tensor, shared_down: SharedDown, split: str
) -> tuple[dict[str, Tensor], Tensor]:
    """Other factors of the same LoRAs: (up G^T) (G down) = up down, G orthogonal, per person and module.

    Args:
        layout: with a shared `lora_down`.
        flat: (n, P).
        shared_down: module -> (R, in).
        split: whose people; decides G.

    Returns:
        module -> lora_down (n, R, in), and flat weights (n, P).
    """
    generator = torch.Generator().manual_seed(OWN_SEED + SPLITS.index(split))
    downs, ups = {}, {}
    for name, (down, up) in layout.factors(flat, shared_down).items():
        start = torch.randn(len(flat), layout.rank, layout.rank, generator=generator)
        gauge = torch.linalg.qr(start).Q  # (n, R, R)
        downs[name], ups[name, "lora_up"] = gauge @ down, up @ gauge.mT  # (n, R, in), (n, out, R)
    return downs, layout.flatten(ups)


@dataclass(frozen=True, eq=False)
class Loras:
    """LoRAs of some people of a library, whole: with `lora_down` where every person has another.

    Args:
        layout: of them.
        down: module -> (R, in); None if the LoRAs hold their own.
        flat: (n, P).
    """

    layout: LoraLayout
    down: Mapping[str, Tensor] | None
    flat: Tensor

    @classmethod
    def read(cls, folder: Path, setting: Setting, split: str, count: int) -> "Loras":
        """People 0 .. count - 1 of a split."""
        library = load_library(folder, split)
        place = {person: row for row, person in enumerate(library.people.tolist())}
        people = list(range(count))
        flat = library.flat[[place[person] for person in people]]  # (n, P)
        if setting.own_down:
            down = own_down(library.layout, split, people)
        elif setting.gauge:
            down, flat = random_gauge(library.layout, flat, library.shared_down, split)
        else:
            return cls(library.layout, library.shared_down, flat)
        whole = replace(library.layout, train_down=True)
        parts = {(name, "lora_down"): factor for name, factor in down.items()}
        return cls(whole, None, whole.flatten({**library.layout.unflatten(flat), **parts}))

    def batch(self, strength: float, flat: Tensor | None = None) -> LoraBatch:
        """For drawing: these, or others (n, P) of the same kind."""
        return LoraBatch(self.layout, self.down, self.flat if flat is None else flat, strength)


def seconds_per_person(base: BaseModel, setting: Setting, pictures: tuple[Tensor, Tensor]) -> float:
    """CPU seconds that a LoRA costs, from a few steps: a library may come from elsewhere."""
    making = setting.making
    layout = LoraLayout.from_model(base.denoiser, TARGETS[making.targets], making.rank)
    latents, prompts = (part[:PROBE_PEOPLE] for part in pictures)
    down = init_shared_down(layout)
    spent = []
    for _ in range(2):  # the first one warms up
        config, generator = (
            replace(making.training(), num_steps=PROBE_STEPS),
            torch.Generator().manual_seed(0),
        )
        start = time.process_time()
        train_loras(base, layout, latents, prompts, config, generator, down)
        spent.append(time.process_time() - start)
    return spent[1] / PROBE_STEPS * making.steps / len(latents)

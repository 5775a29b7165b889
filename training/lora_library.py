"""A library of LoRAs on disk: a config, one shared `lora_down`, and shards of flat weights.

    library/config.json                    what the LoRAs were made of, with the layout
    library/shared_down.safetensors        module -> (R, in); absent if the LoRAs have their own lora_down
    library/train/shard-00000.safetensors  flat_weights (B, P), people (B,); likewise validation/, test/
    library/test_reference/...             the same people, each LoRA trained on the one reference photo

Letters: B people of a shard, N people of a library, R rank, P parameters of one LoRA.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from difflora.errors import CheckpointError, DiffLoRAError
from difflora.files import load_safetensors
from difflora.layout import LoraLayout, SharedDown, check_shapes
from difflora.lora_training import AUTOCAST_DTYPES, LoraTrainingConfig
from training.base_presets import TARGETS
from training.common import read_config

DOWNS = ("random", "learned")
SHARED_DOWN_NAME = "shared_down.safetensors"
SPLITS = ("train", "validation", "test")
REFERENCE_SUFFIX = "_reference"
"""Of the folder of LoRAs that were trained on one photo of each person, beside those of the split."""


@dataclass(frozen=True)
class LibraryConfig:
    """How a library is made: what a LoRA is, and how each is trained.

    Args:
        targets: what a LoRA touches, one of `training.base_presets.TARGETS`.
        rank: of every LoRA.
        down: the shared lora_down: "random", or "learned" with the first people.
        down_people: people that learn it together, in one batch.
        down_steps: optimiser steps of that.
        pictures: pictures of each person.
        styled: share of rendered people's pictures that are in another style than a colour photo's.
        batch: people trained at once, one shard.
        steps: optimiser steps for each batch of people.
        pictures_per_step: pictures of each person in a step.
        learning_rate: peak rate; see `LoraTrainingConfig`, also for the next two.
        average_from: fraction of the steps after which weights are averaged.
        precision: "float32", "bfloat16" or "float16"; half precision pays only where the hardware has units.
        identity_weight: of the face's likeness in what is trained for, see `training.identity_loss`; 0 is the
            base model's own loss alone.
        portrait_weight: the same of the whole picture's likeness, hair and all.
        checkpointing: recompute activations instead of keeping them: a third slower, much less memory.
    """

    targets: str = "attention+ff"
    rank: int = 4
    down: str = "learned"
    down_people: int = 16
    down_steps: int = 60
    pictures: int = 24
    styled: float = 0.0
    batch: int = 16
    steps: int = LoraTrainingConfig.num_steps
    pictures_per_step: int = LoraTrainingConfig.pictures_per_step
    learning_rate: float = LoraTrainingConfig.learning_rate
    average_from: float = LoraTrainingConfig.average_from
    precision: str = LoraTrainingConfig.precision
    identity_weight: float = 0.0
    portrait_weight: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        """Refuse names that nothing implements.

        Raises:
            DiffLoRAError: an unknown name.
        """
        for name, known in (("targets", TARGETS), ("down", DOWNS), ("precision", AUTOCAST_DTYPES)):
            if (value := getattr(self, name)) not in known:
                raise DiffLoRAError(f"--{name} {value!r} is not known: use one of {', '.join(known)}")

    def training(self) -> LoraTrainingConfig:
        """The part that is about training one LoRA."""
        return LoraTrainingConfig(
            num_steps=self.steps,
            pictures_per_step=self.pictures_per_step,
            learning_rate=self.learning_rate,
            average_from=self.average_from,
            precision=self.precision,
        )


class MappedWeights:
    """Flat weights (N, P) that stay on disk: a slice is another view, a tensor of rows is read.

    It has what training needs of a tensor's interface, so that a library may be larger than the memory.

    Args:
        shards: (B, P) each, memory-mapped.
        rows: (N,) int64, which rows of the shards in a row; all of them by default.
    """

    def __init__(self, shards: Sequence[Tensor], rows: Tensor | None = None) -> None:
        """Number the rows."""
        self._shards = list(shards)
        self._ends = torch.tensor([len(shard) for shard in shards]).cumsum(0)  # (shards,)
        self._rows = torch.arange(int(self._ends[-1])) if rows is None else rows  # (N,)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, P)."""
        return len(self._rows), self._shards[0].shape[1]

    @property
    def ndim(self) -> int:
        """Of a matrix."""
        return 2

    def __len__(self) -> int:
        """Number of LoRAs N."""
        return len(self._rows)

    def __getitem__(self, rows: "slice | Tensor") -> "Tensor | MappedWeights":
        """A view of a slice, or a tensor (n, P) of the rows (n,), in the precision of the file."""
        chosen = self._rows[rows]  # (n,)
        if isinstance(rows, slice):
            return MappedWeights(self._shards, chosen)
        places = torch.searchsorted(self._ends, chosen, right=True)  # (n,)
        starts = torch.cat([torch.zeros(1, dtype=torch.long), self._ends])  # (shards + 1,)
        return torch.stack(
            [
                self._shards[place][row]
                for place, row in zip(places.tolist(), (chosen - starts[places]).tolist(), strict=True)
            ]
        )  # (n, P)

    def split(self, size: int) -> Iterator[Tensor]:
        """Consecutive pieces (n, P) of at most `size` rows, read one by one."""
        for start in range(0, len(self), size):
            yield self[torch.arange(start, min(start + size, len(self)))]


@dataclass(frozen=True, eq=False)
class Library:
    """LoRAs of N people.

    Args:
        layout: of every LoRA.
        shared_down: module -> lora_down (R, in); empty if the layout trains lora_down.
        flat: (N, P), in memory in float32, or on disk.
        people: (N,) int64, index of the person in its split (or folder).
    """

    layout: LoraLayout
    shared_down: SharedDown
    flat: Tensor | MappedWeights
    people: Tensor


@dataclass(frozen=True)
class Shard:
    """One batch of people and its file."""

    number: int
    path: Path
    people: tuple[int, ...]

    def is_done(self) -> bool:
        """Whether the file is there, whole, and holds these people; it may hold more, and keeps them."""
        if not self.path.is_file():
            return False
        tensors, _ = load_safetensors(self.path)
        return set(self.people) <= set(tensors["people"].tolist())


def deal_shards(folder: Path, split: str, count: int, batch: int) -> list[Shard]:
    """Cut people 0 .. count - 1 into batches; the last one may be smaller."""
    shards = []
    for number, start in enumerate(range(0, count, batch)):
        path = folder / split / f"shard-{number:05d}.safetensors"
        shards.append(Shard(number, path, tuple(range(start, min(start + batch, count)))))
    return shards


def load_library(folder: str | Path, split: str = "train", mapped: bool = False) -> Library:
    """Read all finished shards of a library.

    Args:
        folder: what `make_loras --out` or `import_w2w --out` wrote.
        split: sub-folder of the people.
        mapped: leave the weights on disk (`MappedWeights`).

    Raises:
        CheckpointError: no library, no shards, or a damaged one.
        LayoutError: shards do not fit the layout.
    """
    folder = Path(folder)
    config = read_config(folder)
    layout = LoraLayout.from_json(config["layout"])
    shared_down: dict[str, Tensor] = {}
    if not layout.train_down:
        shared_down, _ = load_safetensors(folder / SHARED_DOWN_NAME)
        check_shapes({m.name: (layout.rank, m.in_features) for m in layout.modules}, shared_down)
    shards = [load_safetensors(path)[0] for path in sorted((folder / split).glob("shard-*.safetensors"))]
    if not shards:
        raise CheckpointError(
            f"{folder / split} has no LoRAs yet: run training.make_loras with --split {split}"
        )
    for shard in shards:
        layout.unflatten(shard["flat_weights"])  # raises if the length is wrong
    flat = MappedWeights([shard["flat_weights"] for shard in shards])  # (N, P)
    people = torch.cat([shard["people"] for shard in shards])  # (N,)
    if mapped:
        return Library(layout, shared_down, flat, people)
    whole = torch.cat([shard["flat_weights"].float() for shard in shards])  # (N, P)
    return Library(layout, shared_down, whole, people)


class MakesLoras(Protocol):
    """What says which LoRAs it holds or makes: a library, a `DiffLoRA`."""

    @property
    def layout(self) -> LoraLayout:
        """Of every LoRA."""

    @property
    def shared_down(self) -> SharedDown | None:
        """Module -> lora_down, none if every LoRA has its own."""


def check_same_loras(
    what: str, layout: LoraLayout, shared_down: SharedDown, expected: MakesLoras, advice: str
) -> None:
    """Refuse LoRAs of another layout or with another `lora_down` than expected.

    Raises:
        CheckpointError: says what differs.
    """
    if layout.fingerprint != expected.layout.fingerprint:
        raise CheckpointError(
            f"{what} has the layout {layout.fingerprint}, not {expected.layout.fingerprint}: {advice}"
        )
    own = expected.shared_down or {}
    for name, down in shared_down.items():
        if not torch.allclose(own[name].cpu(), down.cpu(), atol=1e-5):
            raise CheckpointError(f"{what} has another lora_down: {advice}")


def library_option(parser: argparse.ArgumentParser, default: str) -> None:
    """The option ``--library``, read as ``options.loras``."""
    parser.add_argument(
        "--library", dest="loras", type=Path, default=Path(default), help="folder of LoRAs by make_loras"
    )

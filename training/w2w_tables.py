"""The small files beside weights2weights' weights, read without running anything that is in them.

`identity_df.pt` is a pickled pandas table. It is read by torch's `weights_only` unpickler, which calls
nothing but what it is told to: for the names of pandas and numpy below it gets stand-ins of ours that only
write down what they are given. Neither pandas nor numpy runs, any other name in the file is refused, and an
unknown version of pandas ends in an error that names the way around: a .csv.
"""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from difflora.errors import CheckpointError
from difflora.layout import LoraLayout, listing
from difflora.lora_keys import PEFT_PREFIX

PERSON_COLUMN = "identity"
WEIGHTS_PARTS = {"lora_down": "lora_A.weight", "lora_up": "lora_B.weight"}


@dataclass(frozen=True)
class Identity:
    """One row of the table.

    Args:
        name: of the folder with this row's photos.
        person: who it is; several rows may be one person. The name, if the table does not say.
    """

    name: str
    person: str


def load_tensor_file(path: Path, mapped: bool = True) -> Any:  # noqa: ANN401 (whatever the file holds)
    """Read a `.pt` file of tensors, numbers and containers, its tensors memory-mapped.

    Raises:
        CheckpointError: missing, damaged, or with anything else in it.
    """
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}: check the spelling and that the download is complete")
    try:
        return torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, OSError ...
        raise CheckpointError(
            f"{path} cannot be read as plain tensors ({str(error).splitlines()[0]}): download it again"
        ) from error


def check_dimensions(dimensions: object, layout: LoraLayout) -> None:
    """Compare `weight_dimensions.pt`, key -> (size, shape) in the order of the numbers, with a layout.

    Raises:
        CheckpointError: another key, order or shape.
    """
    if not isinstance(dimensions, Mapping):
        raise CheckpointError("the dimensions are not a table of keys: give weight_dimensions.pt")
    found = [(comparable(key), tuple(entry[1])) for key, entry in dimensions.items()]
    wanted = [
        (comparable(f"{PEFT_PREFIX}{spec.module}.{WEIGHTS_PARTS[spec.part]}"), spec.shape)
        for spec in layout.tensors
    ]
    for number, (own, other) in enumerate(zip(found, wanted, strict=False)):
        if own != other:
            raise CheckpointError(
                f"tensor {number} of the dimensions is {own[0]} {own[1]}, expected {other[0]} {other[1]}: "
                "the file belongs to other weights, or the base model is not SD 1.5"
            )
    if len(found) != len(wanted):
        raise CheckpointError(f"the dimensions have {len(found)} tensors, expected {len(wanted)}")


def comparable(key: str) -> str:
    """A key without its prefix, the adapter's name and the difference between `.` and `_`."""
    path = re.sub(r"^(base_model\.model\.|lora_unet_)", "", key)
    path = re.sub(r"\.(identity1|default)\.", ".", path)
    return path.replace(".", "_")


def read_identities(path: Path, folder_column: str | None = None) -> list[Identity]:
    """Read who each row of the weights is.

    Args:
        path: `identity_df.pt`, or the same table as `.csv` (first column: the index).
        folder_column: column with the names of photo folders; by default the index.

    Raises:
        CheckpointError: unreadable, or without that column.
    """
    table = read_csv(path) if path.suffix.lower() == ".csv" else read_pickled_table(path)
    if folder_column is not None and folder_column not in table:
        raise CheckpointError(f"{path} has no column {folder_column!r}: it has {listing(table)}")
    names = table[folder_column if folder_column is not None else INDEX]
    if not names:
        raise CheckpointError(f"{path} has no rows: download it again")
    people = table.get(PERSON_COLUMN, names)
    return [Identity(name, person) for name, person in zip(names, people, strict=True)]


INDEX = ""
"""Name of the index among the columns, as pandas writes it into a .csv."""


def read_csv(path: Path) -> dict[str, list[str]]:
    """Columns of a .csv file with a header; the first one is also the index."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CheckpointError(f"{path} is not a readable .csv ({error}): write it again") from error
    if not header or any(len(row) != len(header) for row in rows):
        raise CheckpointError(f"{path} is not a table with a header and rows of one length: write it again")
    columns = {name: [row[number] for row in rows] for number, name in enumerate(header)}
    return {**columns, INDEX: [row[0] for row in rows]}


# --- the pickled table ------------------------------------------------------------------------------------


class Recorded:
    """What a call in the file would have made: its arguments, and the state that was put into it."""

    def __new__(cls, *arguments: object, **named: object) -> "Recorded":
        """Write the arguments down."""
        self = super().__new__(cls)
        self.arguments, self.state = arguments, None
        return self

    def __setstate__(self, state: object) -> None:
        """Write the state down."""
        self.state = state


class Frame(Recorded):
    """pandas.DataFrame."""


class Manager(Recorded):
    """Its BlockManager: arguments (blocks, [columns, index])."""


class Block(Recorded):
    """Columns of one type: arguments (array (columns, rows), their places, dimensions)."""


class Index(Recorded):
    """Labels: arguments (class, {"data": array} or {"start", "stop", "step"})."""


class Array(Recorded):
    """numpy.ndarray: state (version, shape, dtype, whether Fortran order, list or bytes)."""


class Type(Recorded):
    """numpy.dtype: arguments (code, ...), state (version, byte order, ...)."""


class Name(Recorded):
    """A class that is only mentioned."""


STAND_INS: tuple[tuple[type, tuple[str, ...]], ...] = (
    (Frame, ("pandas.core.frame.DataFrame", "pandas.DataFrame")),
    (Manager, ("pandas.core.internals.managers.BlockManager",)),
    (Block, ("pandas._libs.internals._unpickle_block",)),
    (Index, ("pandas.core.indexes.base._new_Index",)),
    (
        Array,
        ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "numpy.ndarray"),
    ),
    (Type, ("numpy.dtype",)),
    (
        Name,
        (
            *("pandas.core.indexes.base.Index", "pandas.Index", "pandas.core.indexes.range.RangeIndex"),
            *("pandas.RangeIndex", "pandas.core.indexes.numeric.Int64Index", "builtins.slice"),
        ),
    ),
)


def read_pickled_table(path: Path) -> dict[str, list[str]]:
    """Columns of `identity_df.pt`, and its index under `INDEX`.

    Raises:
        CheckpointError: a table that this reader does not know.
    """
    known: list[Any] = [(kind, name) for kind, names in STAND_INS for name in names]
    with torch.serialization.safe_globals(known):
        try:
            return columns_of(load_tensor_file(path, mapped=False))
        except (CheckpointError, AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise CheckpointError(
                f"{path} is no table of a pandas version that is known here ({error}). If you trust it, "
                "open it with pandas, write a .csv with its to_csv and give that"
            ) from error


def columns_of(frame: Frame) -> dict[str, list[str]]:
    """Text of every cell, column by column."""
    blocks, (column_names, index) = frame.state["_mgr"].arguments
    names = labels(column_names)
    columns: dict[str, list[str]] = {INDEX: labels(index)}
    for block in blocks:
        array, places = block.arguments[:2]
        cells = values(array)  # columns x rows, in C order
        chosen = range(*places.arguments) if isinstance(places, Name) else values(places)
        count = len(columns[INDEX])
        for number, place in enumerate(chosen):
            own = cells[number * count : (number + 1) * count]
            columns[names[int(place)]] = [str(cell) for cell in own]
    return columns


def labels(index: Index) -> list[str]:
    """Texts of an index."""
    settings = index.arguments[1]
    if "data" in settings:
        return [str(value) for value in values(settings["data"])]
    return [str(value) for value in range(settings["start"], settings["stop"], settings["step"])]


def values(array: Array) -> list[Any]:
    """Numbers or texts of an array, in C order."""
    _, shape, kind, fortran, data = array.state
    if not isinstance(data, list):
        code = kind.arguments[0]
        types = {
            "i8": torch.int64,
            "i4": torch.int32,
            "i1": torch.int8,
            "f8": torch.float64,
            "f4": torch.float32,
        }
        data = torch.frombuffer(bytearray(data), dtype=types[code]).tolist()
    if fortran and len(shape) == 2:
        rows, width = shape
        data = [data[column * rows + row] for row in range(rows) for column in range(width)]
    return data

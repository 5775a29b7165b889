"""What every training script shares: run folders, resumable state, metrics, plots, a polite Ctrl-C.

Nothing here is pickled: state is one `.safetensors` file whose header holds everything that is not a tensor,
so that tensors and step counter can never come from two different saves.
"""

import hashlib
import json
import math
import os
import platform
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from difflora.errors import CheckpointError, DiffLoRAError
from difflora.files import atomic_save, load_safetensors, save_safetensors

CONFIG_NAME = "config.json"
STATE_KEY = "state"
T = TypeVar("T")


# --- progress ---------------------------------------------------------------------------------------------


def progress_bar(total: int, description: str, done: int = 0, position: int | None = None) -> tqdm:
    """Progress bar that also starts in the middle, after a resume."""
    return tqdm(
        total=total, initial=done, desc=description, position=position, dynamic_ncols=True, smoothing=0.1
    )


def say(message: str) -> None:
    """Print a line without tearing a progress bar apart."""
    tqdm.write(message)


@contextmanager
def polite_interruption() -> Iterator[Callable[[], bool]]:
    """Let a loop finish its step and save before it stops.

    `with polite_interruption() as interrupted: for ...: step(); if interrupted(): save(); break`
    The first SIGINT or SIGTERM only sets the flag; a second SIGINT stops at once.
    Works in the main thread only, as Python's signals do.
    """
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        say("interrupted: saving after this step (press Ctrl-C again to stop at once)")

    previous = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


# --- configs ----------------------------------------------------------------------------------------------


def digest_of(*paths: Path) -> str:
    """Sixteen hexadecimal digits over the contents of files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def config_to_dict(config: object) -> dict[str, Any]:
    """Plain JSON values of a config dataclass."""
    if not is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"expected a dataclass instance, got {type(config).__name__}")
    return json.loads(json.dumps(asdict(config)))


def config_from_dict(kind: type[T], values: Mapping[str, Any]) -> T:
    """Inverse of `config_to_dict` for a flat dataclass.

    Raises:
        CheckpointError: an unknown or missing key.
    """
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise CheckpointError(
            f"unknown settings for {kind.__name__}: {', '.join(unknown)}; "
            f"known are {', '.join(sorted(known))}"
        )
    try:
        return kind(**values)
    except TypeError as error:
        raise CheckpointError(f"settings for {kind.__name__} are incomplete: {error}") from error


def open_run(folder: str | Path, config: Mapping[str, Any]) -> Path:
    """Create a run folder with its `config.json`, or go on in one that has the same config.

    Args:
        folder: the run folder.
        config: JSON values: everything that decides what the run computes.

    Returns:
        The folder.

    Raises:
        CheckpointError: the folder belongs to a run with another config; says what differs.
    """
    folder = Path(folder)
    path = folder / CONFIG_NAME
    wanted = json.loads(json.dumps(config))
    if not path.exists():
        text = json.dumps(wanted, indent=1)
        atomic_save(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return folder
    found = read_config(folder)
    if differences := list(compare(found, wanted)):
        raise CheckpointError(
            f"{folder} belongs to a run with other settings: {'; '.join(differences[:5])}: "
            "use the same settings to go on, or another folder to start anew"
        )
    return folder


def read_config(folder: str | Path) -> dict[str, Any]:
    """The `config.json` of a run folder.

    Raises:
        CheckpointError: there is none, or it is not JSON.
    """
    path = Path(folder) / CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a run folder: it has no {CONFIG_NAME}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not JSON ({error}): delete the folder and start anew") from error


def compare(found: object, wanted: object, name: str = "") -> Iterator[str]:
    """Say, one by one, where two JSON values differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            yield from compare(found.get(key), wanted.get(key), f"{name}.{key}" if name else key)
    elif found != wanted:
        yield f"{name} was {shorten(found)}, now {shorten(wanted)}"


def shorten(value: object, limit: int = 60) -> str:
    """A value as short text."""
    text = json.dumps(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


# --- state ------------------------------------------------------------------------------------------------


def save_state(path: str | Path, state: Mapping[str, Any]) -> Path:
    """Save a nested state atomically: models, optimisers, generators, counters.

    Args:
        path: `.safetensors`.
        state: nested dicts (string or int keys), lists, tuples, tensors, strings, numbers, booleans and None;
            e.g. `{"model": m.state_dict(), "optimiser": o.state_dict(), "rng": g.get_state(), "step": 7}`.

    Raises:
        TypeError: a value of another kind.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_to_json(state, tensors))
    return save_safetensors(path, tensors, {STATE_KEY: text})


def load_state(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Inverse of `save_state`. Generator states need `device="cpu"`, the default.

    Raises:
        CheckpointError: missing, damaged or foreign file.
    """
    tensors, metadata = load_safetensors(path, device)
    if STATE_KEY not in metadata:
        raise CheckpointError(f"{path} is not a saved training state: delete it to start anew")
    state = _from_json(json.loads(metadata[STATE_KEY]), tensors)
    return dict(state) if isinstance(state, dict) else {}


def _to_json(value: object, tensors: dict[str, Tensor]) -> object:
    if isinstance(value, Tensor):
        key = f"{len(tensors):06d}"
        tensors[key] = value
        return {"tensor": key}
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str | int)]:
            raise TypeError(f"state keys must be strings or ints, got {wrong[:3]}")
        return {"dict": [[key, _to_json(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_to_json(item, tensors) for item in value]}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"cannot save a {type(value).__name__} in a training state")


def _from_json(value: object, tensors: Mapping[str, Tensor]) -> object:
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _from_json(item, tensors) for key, item in content}
    items = [_from_json(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


# --- metrics ----------------------------------------------------------------------------------------------


class MetricsWriter:
    """Appends one JSON object per line; every line is flushed, so that a kill costs at most the last one."""

    def __init__(self, path: str | Path, resume_after: int | None = None) -> None:
        """Open the file.

        Args:
            path: `.jsonl`.
            resume_after: keep earlier lines up to this step and drop what a killed run wrote later;
                None keeps everything.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            kept = [m for m in read_metrics(path) if resume_after is None or m.get("step", 0) <= resume_after]
            text = "".join(json.dumps(metrics) + "\n" for metrics in kept)
            atomic_save(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, **values: float | str) -> None:
        """Append a line; numbers that are not finite become null, which JSON can hold."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **clean}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "MetricsWriter":
        """The writer itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        self.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file; a last line that a kill cut off is left out."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def plot_metrics(
    metrics_path: str | Path, picture_path: str | Path, keys: tuple[str, ...] = ("loss",)
) -> Path:
    """Draw metrics over steps, raw in pale and smoothed in strong, on a log scale where all are positive.

    Raises:
        DiffLoRAError: none of the keys was ever written.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here

    rows = read_metrics(metrics_path)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    drawn: list[float] = []
    for index, key in enumerate(keys):
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        window = max(1, len(values) // 50)
        smooth = [
            sum(part) / len(part) for part in (values[max(0, i - window) : i + 1] for i in range(len(values)))
        ]
        axes.plot(steps, values, color=f"C{index}", alpha=0.25, linewidth=1)
        axes.plot(steps, smooth, color=f"C{index}", label=key)
        drawn += values
    if not drawn:
        raise DiffLoRAError(f"{metrics_path} has no numbers for {', '.join(keys)}: nothing to plot")
    axes.set_yscale("log" if min(drawn) > 0 else "linear")
    axes.set_xlabel("step")
    axes.legend()
    return atomic_save(picture_path, lambda temporary: figure.savefig(temporary, dpi=120))


# --- reports ----------------------------------------------------------------------------------------------


def machine() -> str:
    """Processor, cores and torch version: what a measured number has to name."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = re.findall(
            r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8"), flags=re.MULTILINE
        )
        processor = names[0] if names else processor
    return f"{processor}, {os.cpu_count()} cores, torch {torch.__version__}"

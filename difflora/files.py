"""Files that are either whole or absent: atomic writes, and strict reading of `.safetensors`."""

import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import CheckpointError

# torch.save's zip archive; bare pickle streams of protocols 2 to 5
PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def atomic_save(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Write a file beside its destination, then rename: a reader never sees half a file.

    The temporary name keeps the suffix, because writers (PIL, matplotlib) choose the format by it,
    and begins with a dot, so that a pattern such as `shard-*.safetensors` does not match what a kill left.

    Args:
        path: destination; missing parent folders are made.
        write: called with the temporary path; has to write the file there.

    Returns:
        The destination.
    """
    destination = Path(path).resolve()
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = destination.with_name(f".{destination.stem}.{uuid.uuid4().hex[:8]}{destination.suffix}")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # the data reach the disk before the name does
        os.replace(temporary, destination)
    finally:
        temporary.unlink(missing_ok=True)  # only still there when writing failed or was interrupted
    return Path(path)


def save_safetensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Save tensors and string metadata atomically as `.safetensors`.

    Args:
        path: destination.
        tensors: name -> tensor of any shape, device and strides; views are copied.
        metadata: name -> string, stored in the header.

    Returns:
        The destination.
    """
    seen: set[int] = set()
    storable: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        stored = tensor.detach().cpu().contiguous()
        storage = stored.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != stored.nbytes:
            stored = stored.clone()  # safetensors refuses tensors that share memory
        seen.add(storage.data_ptr())
        storable[name] = stored
    header = {str(key): str(value) for key, value in (metadata or {}).items()}
    return atomic_save(path, lambda temporary: save_file(storable, temporary, metadata=header))


@contextmanager
def open_safetensors(path: str | Path, device: str | torch.device = "cpu") -> Iterator[Any]:
    """A `.safetensors` file, opened; what is wrong with it is said in one sentence.

    Args:
        path: the file.
        device: where tensors go that are read from it.

    Yields:
        What `safetensors.safe_open` gives. The file is known to be whole then: its length is in its header.

    Raises:
        CheckpointError: the file is missing, a pickle, truncated or not `.safetensors` at all.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}: check the spelling and that the download is complete")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            yield file
    except SafetensorError as error:
        with path.open("rb") as raw:
            pickled = raw.read(4).startswith(PICKLE_MAGIC)
        if pickled:
            raise CheckpointError(
                f"{path} looks like a pickle (.pt, .ckpt, .bin), which can run code when it is read and is "
                "never loaded here: convert it to .safetensors with its author's tool"
            ) from error
        raise CheckpointError(
            f"{path} is truncated or not .safetensors ({error}): download or make the file again"
        ) from error


def load_safetensors(
    path: str | Path, device: str | torch.device = "cpu"
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Load all tensors and the metadata of a `.safetensors` file.

    Args:
        path: the file.
        device: where the tensors go.

    Returns:
        name -> tensor, and name -> string.

    Raises:
        CheckpointError: the file is missing, a pickle, truncated or not `.safetensors` at all.
    """
    with open_safetensors(path, device) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})


def read_safetensors_header(path: str | Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shapes and metadata of a `.safetensors` file, from its header alone.

    Args:
        path: the file.

    Returns:
        name -> shape, and name -> string.

    Raises:
        CheckpointError: the file is missing, a pickle, truncated or not `.safetensors` at all.
    """
    with open_safetensors(path) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        return shapes, dict(file.metadata() or {})


def tensor_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a `.safetensors` file, from its header alone.

    Raises:
        CheckpointError: the file is missing, a pickle, truncated or not `.safetensors` at all.
    """
    return read_safetensors_header(path)[0]

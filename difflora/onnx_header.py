"""What an ONNX file computes, without its weights: a few kilobytes read, whatever the file's size.

insightface starts an inference session for every file of a pack before it looks at what the file is for.
Reading names and shapes first keeps hundreds of megabytes that nobody needs (landmarks, age) on the disk.
The format is protobuf, of which two things are needed here: variable-length integers, and messages with
their length in front, which can be stepped over (protobuf.dev/programming-guides/encoding; the numbers of the
fields are those of onnx.proto3).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MODEL_GRAPH = 7
GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT = 5, 11, 12
TENSOR_NAME, VALUE_NAME, VALUE_TYPE = 8, 1, 2
TYPE_TENSOR, TENSOR_SHAPE, SHAPE_DIM, DIM_VALUE = 1, 2, 1, 1


@dataclass(frozen=True)
class OnnxHeader:
    """Inputs and outputs of a graph.

    Args:
        inputs: shape of every input that is not a weight; 0 stands for a size that is free.
        num_outputs: how many there are.
    """

    inputs: tuple[tuple[int, ...], ...]
    num_outputs: int


def read_onnx_header(path: str | Path) -> OnnxHeader:
    """Read inputs and outputs of an ONNX file.

    Args:
        path: the file.

    Returns:
        Its header.

    Raises:
        ValueError: the file is empty, truncated or not ONNX.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        graphs = [
            (start, end) for number, start, end in _messages(data, 0, len(data)) if number == MODEL_GRAPH
        ]
        if len(graphs) != 1:
            raise ValueError("not an ONNX file: it holds no graph")
        weights: set[bytes] = set()
        inputs, num_outputs = {}, 0
        for number, start, end in _messages(data, *graphs[0]):
            if number == GRAPH_INITIALIZER:
                weights.update(_texts(data, start, end, TENSOR_NAME))
            elif number == GRAPH_INPUT:
                name = next(_texts(data, start, end, VALUE_NAME), b"")
                inputs[name] = _shape(data, start, end)
            elif number == GRAPH_OUTPUT:
                num_outputs += 1
    # old exporters list the weights among the inputs
    return OnnxHeader(tuple(shape for name, shape in inputs.items() if name not in weights), num_outputs)


def _shape(data: mmap.mmap, start: int, end: int) -> tuple[int, ...]:
    """Sizes of the tensor that a ValueInfoProto describes."""
    spans = [(start, end)]
    for wanted in (VALUE_TYPE, TYPE_TENSOR, TENSOR_SHAPE, SHAPE_DIM):
        spans = [(a, b) for span in spans for number, a, b in _messages(data, *span) if number == wanted]
    return tuple(_integer_field(data, a, b, DIM_VALUE) for a, b in spans)


def _texts(data: mmap.mmap, start: int, end: int, wanted: int) -> Iterator[bytes]:
    return (data[a:b] for number, a, b in _messages(data, start, end) if number == wanted)


def _integer_field(data: mmap.mmap, start: int, end: int, wanted: int) -> int:
    """Value of an integer field, 0 where it is absent."""
    at = start
    while at < end:
        key, at = _varint(data, at, end)
        value, after = _varint(data, at, end) if key & 7 == 0 else (0, _skip(data, at, end, key & 7))
        if key == wanted << 3:
            return value
        at = after
    return 0


def _messages(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, start, end) of every field with a length: messages, texts, raw bytes."""
    at = start
    while at < end:
        key, at = _varint(data, at, end)
        after = _skip(data, at, end, key & 7)
        if key & 7 == 2:
            _, first = _varint(data, at, end)
            yield key >> 3, first, after
        at = after


def _skip(data: mmap.mmap, at: int, end: int, wire_type: int) -> int:
    """Where the next field begins."""
    if wire_type == 0:
        _, after = _varint(data, at, end)
    elif wire_type == 2:
        length, first = _varint(data, at, end)
        after = first + length
    elif wire_type in (1, 5):
        after = at + (8 if wire_type == 1 else 4)
    else:
        raise ValueError(f"not an ONNX file: wire type {wire_type} at byte {at}")
    if after > end:
        raise ValueError(f"the file is truncated or not ONNX: a field at byte {at} ends after its message")
    return after


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """A base-128 number, lowest digits first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):  # ten bytes hold 64 bits
        if at >= end:
            raise ValueError("the file is truncated or not ONNX: it ends within a number")
        digit = data[at]
        at += 1
        value |= (digit & 0x7F) << shift
        if digit < 0x80:
            return value, at
    raise ValueError(f"not an ONNX file: no number at byte {at}")

"""A recogniser's ONNX file as a torch network, so that a loss can look through it.

Face packs are ONNX files, and onnxruntime has no gradients for them. A recogniser is a plain convolutional
network of a dozen kinds of node (ArcFace's residual nets, MobileFaceNet, ours). The converters that there are
bring torchvision along.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from difflora.errors import FaceModelError
from difflora.onnx_header import read_onnx_header

Attributes = Mapping[str, Any]


def _same_on_both_sides(pads: list[int]) -> list[int]:
    before, after = pads[: len(pads) // 2], pads[len(pads) // 2 :]
    if before != after:
        raise FaceModelError(f"padding {pads} is not the same on both sides")
    return before


def _convolution(given: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    padding = _same_on_both_sides(given.get("pads", [0, 0, 0, 0]))
    stride, dilation = given.get("strides", [1, 1]), given.get("dilations", [1, 1])
    return functional.conv2d(x, weight, bias, stride, padding, dilation, given.get("group", 1))


def _normalisation(
    given: Attributes, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    return functional.batch_norm(x, mean, variance, weight, bias, eps=given.get("epsilon", 1e-5))


def _product(given: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x = x.mT if given.get("transA", 0) else x
    weight = weight.mT if given.get("transB", 0) else weight
    out = given.get("alpha", 1.0) * (x @ weight)
    return out if bias is None else out + given.get("beta", 1.0) * bias


OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "Add": lambda given, x, y: x + y,
    "BatchNormalization": _normalisation,
    "Conv": _convolution,
    "Div": lambda given, x, y: x / y,
    "Flatten": lambda given, x: x.flatten(given.get("axis", 1)),
    "Gemm": _product,
    "GlobalAveragePool": lambda given, x: x.mean((2, 3), keepdim=True),
    "Identity": lambda given, x: x,
    "MatMul": lambda given, x, y: x @ y,
    "Mul": lambda given, x, y: x * y,
    # ONNX has slopes of a shape that broadcasts, torch one for each channel
    "PRelu": lambda given, x, slope: torch.where(x < 0, slope * x, x),
    "Relu": lambda given, x: x.relu(),
    "Sigmoid": lambda given, x: x.sigmoid(),
    "Sub": lambda given, x, y: x - y,
}


class OnnxNetwork(nn.Module):
    """A network of one input and one output; its weights are buffers and are not trained.

    Args:
        path: the ONNX file.

    Attributes:
        side: of the pictures that it was exported for; 0 if the file leaves it open.

    Raises:
        FaceModelError: it cannot be read, or has nodes or paddings that are not known here.
    """

    def __init__(self, path: str | Path) -> None:
        """Read the graph, constants folded by onnxruntime."""
        super().__init__()
        try:
            header = read_onnx_header(path)
        except (OSError, ValueError) as error:
            raise FaceModelError(f"{path} cannot be read as a recogniser: {error}") from error
        self.side = header.inputs[0][-1] if header.inputs and header.inputs[0] else 0
        graph = _folded(path).graph
        self._names = {}
        for number, constant in enumerate(graph.initializer):
            self._names[constant.name] = f"constant_{number}"
            self.register_buffer(f"constant_{number}", torch.tensor(numpy_helper.to_array(constant)))
        self._nodes = [
            (node.op_type, {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}, node)
            for node in graph.node
        ]
        if unknown := {name for name, _, _ in self._nodes} - OPERATIONS.keys():
            raise FaceModelError(
                f"{path} has nodes that have no gradient here ({', '.join(sorted(unknown))}): "
                "give another face pack, or train without --identity-weight"
            )
        (self._input,) = [entry.name for entry in graph.input if entry.name not in self._names]
        (self._output,) = [entry.name for entry in graph.output]
        self.train(False)

    def forward(self, x: Tensor) -> Tensor:
        """What onnxruntime would say, with a gradient."""
        values: dict[str, Any] = {"": None, self._input: x}  # an input that is left out is ""
        values |= {name: getattr(self, buffer) for name, buffer in self._names.items()}
        for name, given, node in self._nodes:
            values[node.output[0]] = OPERATIONS[name](given, *(values[i] for i in node.input))
        return values[self._output]


def _folded(path: str | Path) -> onnx.ModelProto:
    """The graph without what only computes constants, such as a weight from its half-precision copy."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)

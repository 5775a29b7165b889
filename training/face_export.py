"""Export of a network to a compact ONNX file that onnxruntime runs in float32."""

from __future__ import annotations

import copy
import inspect
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from difflora.files import atomic_save
from difflora.synthetic.detector import STRIDES, FaceDetector
from difflora.synthetic.recognisers import Recogniser

OPSET = 13
MIN_HALVED = 256
"""Smaller constants (biases, shapes) keep their precision: they weigh nothing."""


def export_onnx(
    model: nn.Module,
    example: Tensor,
    path: str | Path,
    outputs: list[str],
    dynamic: dict[str, dict[int, str]],
) -> Path:
    """Write a model in evaluation mode, BatchNorm folded into the convolutions, weights stored as float16.

    The stored weights pass through a Cast that onnxruntime folds away when it loads the file, so that the
    arithmetic is float32 on every machine, and the file half as large.

    Args:
        model: any module that torch's tracing exporter knows.
        example: one input.
        path: destination.
        outputs: names of the outputs.
        dynamic: name of an input or output -> axis -> name of the free dimension.

    Returns:
        The destination.
    """
    # A copy: a model that is exported while it trains stays as it is.
    frozen = copy.deepcopy(model).train(False).float().cpu()
    # torch's newer exporter writes dynamic shapes that insightface cannot rewrite for a fixed detection size.
    tracing = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}

    def write(temporary: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # the tracing exporter announces its successor
            torch.onnx.export(
                frozen,
                (example,),
                str(temporary),
                input_names=["input"],
                output_names=outputs,
                dynamic_axes=dynamic,
                opset_version=OPSET,
                do_constant_folding=True,
                **tracing,
            )
        graph = onnx.load(str(temporary))
        _halve(graph)
        onnx.checker.check_model(graph)
        onnx.save(graph, str(temporary))

    return atomic_save(path, write)


def _halve(model: onnx.ModelProto) -> None:
    """Store large float32 initialisers as float16 followed by a Cast, in place."""
    casts = []
    for initializer in model.graph.initializer:
        values = onnx.numpy_helper.to_array(initializer)
        if values.dtype != np.float32 or values.size < MIN_HALVED:
            continue
        name = initializer.name
        initializer.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        casts.append(
            onnx.helper.make_node(
                "Cast", [f"{name}.half"], [name], f"widen.{name}", to=onnx.TensorProto.FLOAT
            )
        )
    nodes = casts + list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def export_recogniser(recogniser: Recogniser, path: Path) -> Path:
    """Write a recogniser, e.g. ``recognition.onnx`` of a face pack, for any number of pictures at once."""
    free = {"input": {0: "batch"}, "embedding": {0: "batch"}}
    side = recogniser.config.side
    return export_onnx(recogniser, torch.zeros(1, 3, side, side), path, ["embedding"], free)


def export_detector(detector: FaceDetector, pack: Path) -> Path:
    """Write ``detection.onnx`` of a face pack, for one picture of any size in multiples of 32."""
    names = [f"{part}_{stride}" for part in ("score", "box", "landmarks") for stride in STRIDES]
    free = {"input": {2: "height", 3: "width"}, **{name: {0: f"anchors_{name}"} for name in names}}
    return export_onnx(detector, torch.zeros(1, 3, 128, 128), pack / "detection.onnx", names, free)

"""The header of an ONNX file equals what onnxruntime says about it."""

import onnxruntime
import pytest
from onnx import TensorProto, helper, save

from difflora.onnx_header import OnnxHeader, read_onnx_header
from difflora.synthetic import world


@pytest.mark.parametrize("name", ["detection", "recognition"])
def test_header_equals_onnxruntimes(name: str) -> None:
    path = world.FACE_PACK / f"{name}.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    shapes = tuple(
        tuple(size if isinstance(size, int) else 0 for size in item.shape) for item in session.get_inputs()
    )
    assert read_onnx_header(path) == OnnxHeader(shapes, len(session.get_outputs()))


def test_weights_among_the_inputs_are_left_out(tmp_path) -> None:
    """As exporters wrote it before ONNX's IR version 4."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("picture", (1, 300)), ("weight", (300, 2)), ("out", (1, 2)))
    ]
    weight = helper.make_tensor("weight", TensorProto.FLOAT, (300, 2), [0.5] * 600)
    node = helper.make_node("MatMul", ["picture", "weight"], ["out"])
    graph = helper.make_graph([node], "graph", values[:2], values[2:], [weight])
    save(helper.make_model(graph), tmp_path / "old.onnx")
    assert read_onnx_header(tmp_path / "old.onnx") == OnnxHeader(((1, 300),), 1)


def test_damaged_files_are_refused(tmp_path) -> None:
    whole = (world.FACE_PACK / "recognition.onnx").read_bytes()
    for name, content in (("half", whole[: len(whole) // 2]), ("text", b"hello"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"ONNX|empty"):
            read_onnx_header(tmp_path / name)

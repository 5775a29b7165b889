"""Only what is needed is loaded, and an idle CUDA card is mentioned once."""

import json
import shutil
import warnings

import onnxruntime
import pytest

from difflora import face_models
from difflora.errors import DiffLoRAWarning, FaceModelError
from difflora.face_models import load_face_models
from difflora.synthetic import world


def test_no_session_is_started_for_a_file_that_is_not_needed(tmp_path, monkeypatch) -> None:
    folder = shutil.copytree(world.FACE_PACK, tmp_path / "pack")
    landmarks = pytest.importorskip("onnx").load(folder / "recognition.onnx")
    for axis in (2, 3):
        landmarks.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 192
    pytest.importorskip("onnx").save(landmarks, folder / "1k3d68.onnx")
    started = []
    real = onnxruntime.InferenceSession.__init__
    monkeypatch.setattr(
        onnxruntime.InferenceSession,
        "__init__",
        lambda self, path, *args, **kwargs: (started.append(str(path)), real(self, path, *args, **kwargs))[1],
    )
    models = load_face_models(folder)
    assert sorted(path.rsplit("/", 1)[-1] for path in started) == ["detection.onnx", "recognition.onnx"]
    assert models.providers[-1] == "CPUExecutionProvider"


def test_a_pack_with_a_manifest_is_left_to_insightface(tmp_path) -> None:
    folder = shutil.copytree(world.FACE_PACK, tmp_path / "pack")
    (folder / "recognition.onnx").rename(folder / "b.onnx")
    shutil.copy(folder / "b.onnx", folder / "a.onnx")  # comes first, but the manifest does not name it
    (folder / "MODEL.LICENSE").write_text("our own")
    tasks = {"detection": {"file": "detection.onnx"}, "recognition": {"file": "b.onnx"}}
    manifest = {"manifest_version": 2, "model_id": "pack", "tasks": tasks, "license": "MODEL.LICENSE"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert load_face_models(folder).recogniser.model_file.endswith("b.onnx")
    (folder / "manifest.json").write_text(json.dumps({"name": "another tool's"}))
    assert load_face_models(folder).recogniser.model_file.endswith("a.onnx")


def test_an_idle_cuda_card_is_mentioned_once(monkeypatch) -> None:
    available = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" in available:
        pytest.skip("this onnxruntime can use CUDA")
    monkeypatch.setattr(face_models, "cuda_card", lambda: "RTX 9000")
    with pytest.warns(
        DiffLoRAWarning, match=r"CUDA card \(RTX 9000\).*pip install onnxruntime-gpu"
    ) as caught:
        load_face_models(world.FACE_PACK)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_face_models(world.FACE_PACK, "CPU")  # who asks for the CPU is not warned
    with pytest.raises(FaceModelError, match="no CUDAExecutionProvider"):
        load_face_models(world.FACE_PACK, "CUDA")

"""Load Face Analysis, CLIP_VISION and Doctor in a real ComfyUI with an extra_model_paths.yaml."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from difflora.files import save_safetensors

sys.path.insert(0, str(Path(__file__).parent))
from host_server import ExecutionFailed

PACK = Path(__file__).resolve().parents[2]
WEIGHTS = PACK / "difflora" / "synthetic" / "weights"
ENCODER_NAME = "somebody/clip-of-the-tests"

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(
        not (WEIGHTS / "difflora.safetensors").is_file(),
        reason="the trained weights are not in this checkout",
    ),
]


@pytest.fixture(scope="module")
def real_checkpoint(server) -> str:
    """The shipped checkpoint under a header that names another face pack and another image encoder."""
    with safe_open(WEIGHTS / "difflora.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        header = json.loads(file.metadata()["difflora"])
    header |= {"face_pack": "nested_pack", "image_encoder": ENCODER_NAME}
    path = server.base / "models" / "difflora" / "real.safetensors"
    save_safetensors(path, tensors, {"difflora": json.dumps(header)})
    return path.name


def chain(checkpoint: str = "synthetic world (built in)", **inputs: object) -> dict:
    """Photos -> features -> LoRA -> a file, and the report of the photos."""
    return {
        "load": {"class_type": "DiffLoRALoadModel", "inputs": {"checkpoint": checkpoint, **inputs}},
        "photos": {
            "class_type": "DiffLoRASyntheticPhotos",
            "inputs": {"person": 1, "count": 1, "scene_seed": 0},
        },
        "encode": {
            "class_type": "DiffLoRAEncodePhotos",
            "inputs": {"difflora": ["load", 0], "photos": ["photos", 0]},
        },
        "text": {"class_type": "TestShowText", "inputs": {"text": ["encode", 1]}},
    }


def face_analysis(pack: str, provider: str = "auto", detection_size: str = "auto") -> dict:
    inputs = {"pack": pack, "provider": provider, "detection_size": detection_size}
    return {"faces": {"class_type": "DiffLoRALoadFaceAnalysis", "inputs": inputs}}


def clip_vision(width: int = 0) -> dict:
    inputs = {"folder": str(WEIGHTS / "image_encoder"), "width": width}
    return {"clip": {"class_type": "TestClipVision", "inputs": inputs}}


def told(server, prompt: dict) -> str:
    return server.run(prompt).outputs["text"]["text"][0]


def test_packs_of_extra_model_paths_are_in_the_list(server) -> None:
    inputs = server.get("/object_info/DiffLoRALoadFaceAnalysis")["DiffLoRALoadFaceAnalysis"]["input"]
    kind, options = inputs["required"]["pack"]
    names = kind if isinstance(kind, list) else options["options"]
    assert names[0] == "synthetic (built in)"
    assert {"nested_pack", "pack_beside"} <= set(names)  # by the plain key, and beside a configured folder


def test_a_missing_pack_lists_every_path(server) -> None:
    faces = face_analysis("antelopev2")
    with pytest.raises(ExecutionFailed) as caught:
        server.run({**chain(face_analysis=["faces", 0]), **faces})
    for place in ("elsewhere/faces/models", "elsewhere/models/insightface/models", "models/insightface"):
        assert str(server.base / place) in str(caught.value)
    assert "found packs: nested_pack" in str(caught.value)


def test_a_pack_that_the_checkpoint_does_not_know_is_refused(server) -> None:
    faces = face_analysis("pack_beside", "CPU", "256")
    with pytest.raises(
        ExecutionFailed, match="is 'pack_beside', but the checkpoint was trained with 'synthetic'"
    ):
        server.run({**chain(face_analysis=["faces", 0]), **faces})


def test_a_provider_that_is_not_there_is_an_error_with_the_command(server) -> None:
    with pytest.raises(ExecutionFailed, match=r"no CUDAExecutionProvider here.*pip install onnxruntime-gpu"):
        server.run({**chain(face_analysis=["faces", 0]), **face_analysis("nested_pack", "CUDA")})


def test_a_checkpoint_of_a_real_pack_loads_with_what_it_names(server, real_checkpoint) -> None:
    with pytest.raises(ExecutionFailed, match=r"'nested_pack'.*connect Load Face Analysis"):
        server.run(chain(real_checkpoint))
    connected = {**chain(real_checkpoint, face_analysis=["faces", 0]), **face_analysis("nested_pack")}
    with pytest.raises(ExecutionFailed, match="clip-of-the-tests"):
        server.run(connected)  # no image encoder yet
    with_clip = chain(real_checkpoint, face_analysis=["faces", 0], clip_vision=["clip", 0])
    assert "one face found" in told(server, {**with_clip, **face_analysis("nested_pack"), **clip_vision()})
    folder = server.base / "models" / "clip_vision" / ENCODER_NAME.split("/")[1]
    shutil.copytree(WEIGHTS / "image_encoder", folder)
    connected["load"]["inputs"]["face_analysis"] = ["again", 0]  # a changed folder is no changed input
    connected["again"] = face_analysis("nested_pack", "CPU")["faces"]
    assert "one face found" in told(server, connected)


def test_clip_vision_gives_the_features_of_our_own_encoder(server) -> None:
    drawn = []
    for number, inputs in enumerate(({}, {"clip_vision": ["clip", 0]})):
        prompt = {**chain(**inputs), **clip_vision(), **drawing(f"clip{number}")}
        (path,) = server.files(server.run(prompt), "save")
        drawn.append(np.asarray(Image.open(path)).astype(int))
    difference = np.abs(drawn[0] - drawn[1])  # the same person, up to rounding
    assert difference.mean() < 0.1 and difference.max() <= 8


def drawing(prefix: str) -> dict:
    """What the shipped workflow does with the features."""
    return {
        "world": {"class_type": "DiffLoRALoadSyntheticWorld", "inputs": {}},
        "generate": {
            "class_type": "DiffLoRAGenerate",
            "inputs": {"difflora": ["load", 0], "features": ["encode", 0], **GENERATE},
        },
        "apply": {
            "class_type": "DiffLoRAApply",
            "inputs": {"model": ["world", 0], "lora": ["generate", 0], "strength": 1.0},
        },
        "prompt": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["world", 1], "text": "a person"}},
        "empty": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "sample": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["apply", 0],
                "positive": ["prompt", 0],
                "negative": ["prompt", 0],
                "latent_image": ["empty", 0],
                "seed": 0,
                "steps": 4,
                "cfg": 1.0,
                "denoise": 1.0,
                "sampler_name": "ddim",
                "scheduler": "simple",
            },
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["world", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": prefix}},
    }


GENERATE = {"seed": 0, "steps": 0, "guidance": 0.0, "variation": 0.0}


def test_clip_vision_of_another_width_is_refused(server) -> None:
    with pytest.raises(ExecutionFailed, match="features are 2096 wide, the checkpoint needs 2144"):
        server.run({**chain(clip_vision=["clip", 0]), **clip_vision(48)})


def test_the_doctor_reports_host_and_library(server) -> None:
    prompt = {
        "doctor": {"class_type": "DiffLoRADoctor", "inputs": {}},
        "text": {"class_type": "TestShowText", "inputs": {"text": ["doctor", 0]}},
    }
    report = told(server, prompt)
    assert server.get("/system_stats")["system"]["comfyui_version"] in report
    assert "started with --cpu" in report
    assert str(server.base / "elsewhere" / "faces" / "models") in report
    assert "nested_pack in " in report
    assert "foreign.safetensors is not a DiffLoRA checkpoint" in report
    assert "truncated.safetensors is truncated" in report
    assert report.rstrip().endswith("2 problems")  # these two files, and nothing else
    assert "doctor" not in server.run(prompt).cached  # never from the cache

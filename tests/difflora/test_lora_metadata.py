"""The header and the files beside a LoRA say what browsers and loaders look for."""

import binascii
import hashlib
import io
import json

import pytest
import torch
from PIL import Image

from difflora.files import load_safetensors
from difflora.layout import LoraLayout, ModuleSpec
from difflora.lora import Lora
from difflora.lora_metadata import BASE_MODELS, describe_lora


@pytest.fixture
def lora():
    layout = LoraLayout((ModuleSpec("mid_block.attentions.0.proj_in", 6, 5),), 2, 3.0, train_down=True)
    metadata = {
        **describe_lora("Ann", "sdxl_base_v1-0", strength=0.8),
        "lora_adapter_metadata": '{"lora_alpha": 99}',  # of the file that it was read from
    }
    return Lora.from_flat(layout, torch.arange(22.0), None, metadata)


def test_describe_lora():
    assert describe_lora("Ann", "stable-diffusion-v1") == {
        "ss_base_model_version": "sd_v1",
        "modelspec.title": "Ann",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.resolution": "512x512",
    }
    for model in BASE_MODELS:  # any name will do
        names = (model.kohya, model.modelspec, model.civitai)
        assert len({tuple(describe_lora("x", name).items()) for name in names}) == 1
    other = describe_lora("Ann", "my world", 1.25)
    assert (other["ss_base_model_version"], other["modelspec.architecture"]) == ("my world", "my world/lora")
    assert other["modelspec.usage_hint"] == "no trigger word; strength 1.25"


def test_header(tmp_path, lora):
    tensors, header = load_safetensors(lora.save(tmp_path / "ann_v2.safetensors"))
    assert header["ss_output_name"] == "ann_v2"
    assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("2", "3.0")
    assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert not any("trigger_phrase" in key for key in header)
    assert "lora_adapter_metadata" not in header  # a reader would take 99 for this file's alpha
    content = (tmp_path / "ann_v2.safetensors").read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]  # what kohya hashes: all but the header
    assert header["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert header["modelspec.hash_sha256"] == f"0x{header['sshs_model_hash']}"
    assert len(tensors) == 3


def test_header_when_the_scale_is_in_the_factors(tmp_path, lora):
    _, header = load_safetensors(lora.save(tmp_path / "ann.safetensors", key_style="diffusers"))
    assert float(header["ss_network_alpha"]) == 2
    assert LoraLayout.from_json(header["difflora.layout"]).scale == 1


def test_nothing_beside_the_file_unless_asked(tmp_path, lora):
    lora.save(tmp_path / "ann.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["ann.safetensors"]


def test_preview_and_sidecar(tmp_path, lora):
    picture = Image.new("RGBA", (640, 320), (255, 0, 0, 255))
    path = lora.save(tmp_path / "ann.safetensors", preview=picture, sidecar=True)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"ann.safetensors", "ann.png", "ann.metadata.json"}
    with Image.open(tmp_path / "ann.png") as preview:
        assert (preview.size, preview.format) == ((640, 320), "PNG")
    _, header = load_safetensors(path)
    kind, data = header["modelspec.thumbnail"].split(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(binascii.a2b_base64(data))) as small:
        assert small.size == (256, 128)
    sidecar = json.loads((tmp_path / "ann.metadata.json").read_text(encoding="utf-8"))
    # all fields of LoRA Manager's LoraMetadata that have no default, and the trained words
    assert sidecar["file_name"] == "ann"
    assert sidecar["model_name"] == "Ann"
    assert sidecar["file_path"] == path.resolve().as_posix()
    assert sidecar["size"] == path.stat().st_size
    assert sidecar["modified"] == path.stat().st_mtime
    assert sidecar["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sidecar["base_model"] == "SDXL 1.0"
    assert sidecar["preview_url"] == (tmp_path / "ann.png").resolve().as_posix()
    assert sidecar["civitai"]["trainedWords"] == []
    assert json.loads(sidecar["usage_tips"]) == {"strength": 0.8}
    # a thumbnail is of one picture: the next file, without a picture, must not carry it on
    again = Lora.load(path).save(tmp_path / "again.safetensors")
    assert "modelspec.thumbnail" not in load_safetensors(again)[1]

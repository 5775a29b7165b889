"""Pipeline folders: what is loaded, and what is refused with a sentence that says what to do."""

import json
import shutil

import pytest
import torch

from difflora.base_model import BaseModel
from difflora.errors import CheckpointError
from difflora.pipelines import pooled_text_width, weights_variant

pytest.importorskip("diffusers")


@pytest.mark.parametrize(("name", "modules"), [("sd15", 686), ("sdxl", 1680)])
def test_narrow_models_are_whole_base_models(mini_pipelines, name, modules):
    base = BaseModel.load(mini_pipelines[name])
    assert len(base.denoiser.state_dict()) == modules  # as the published files, see test_base_presets
    assert (base.name, base.picture_px, base.latent_shape) == (name, 64, (4, 8, 8))
    noise = torch.randn(2, *base.latent_shape, generator=torch.Generator().manual_seed(0))
    prompts = base.encode_prompts(["a photo of a person", "smiling"])
    pictures = base.decode(base.sample(prompts, noise, 2, guidance_scale=3.0))
    assert pictures.shape == (2, 3, 64, 64) and pictures.isfinite().all()
    assert base.encode_images(pictures).shape == noise.shape


def test_the_text_encoders_are_part_of_the_fingerprint(mini_pipelines):
    base, other = (BaseModel.load(mini_pipelines["sdxl"]) for _ in range(2))
    assert base.encoders_fingerprint == other.encoders_fingerprint
    with torch.no_grad():
        next(other.more_text_encoders[0][1].parameters()).mul_(1.5)
    assert base.encoders_fingerprint != other.encoders_fingerprint


def test_other_kinds_and_damaged_folders_are_refused(mini_pipelines, tmp_path):
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(CheckpointError, match="download the base model again"):
        BaseModel.load(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(CheckpointError, match="FluxPipeline: base models are"):
        BaseModel.load(tmp_path)
    shutil.copytree(mini_pipelines["sd15"], tmp_path / "base")
    (tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="needs all parts of a StableDiffusionPipeline"):
        BaseModel.load(tmp_path / "base")


def test_half_precision_files(tmp_path):
    assert weights_variant(tmp_path) is None
    (tmp_path / "diffusion_pytorch_model.fp16.safetensors").touch()
    assert weights_variant(tmp_path) == "fp16"
    (tmp_path / "diffusion_pytorch_model.safetensors").touch()
    assert weights_variant(tmp_path) is None


def test_unknown_conditions_are_refused():
    config = type("Config", (), {"addition_embed_type": "text_image"})()
    with pytest.raises(CheckpointError, match="text_image"):
        pooled_text_width("kandinsky", config)

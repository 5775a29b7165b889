"""Base models as data: the published sizes, and narrow models with exactly their names."""

import pytest

from difflora.layout import LoraLayout
from difflora.lora_metadata import base_model_names
from training.base_presets import BASE_PRESETS, MINI_PRESETS, TARGETS

pytest.importorskip("diffusers")

# parameters of the U-Nets as published, in millions, and of LoRAs of all attention projections: SDXL's are
# 1,451,520 for each unit of rank with trained lora_down (5.81 M at rank 4, as HyperLoRA's 11,612,160 at 8)
PUBLISHED = {"sd15": (859.520964, 128), "sdxl": (2567.463684, 560)}


@pytest.mark.parametrize("name", BASE_PRESETS)
def test_layout_without_weights(name):
    size, modules = PUBLISHED[name]
    unet = BASE_PRESETS[name].build_unet()
    assert all(parameter.is_meta for parameter in unet.parameters())
    assert sum(parameter.numel() for parameter in unet.parameters()) == round(size * 1e6)
    layout = BASE_PRESETS[name].layout()
    assert (len(layout.modules), layout.rank, layout.train_down) == (modules, 4, False)
    assert base_model_names(BASE_PRESETS[name].name) is not None  # other tools know it


def test_sdxl_attention_lora_has_the_published_size():
    sdxl = BASE_PRESETS["sdxl"]
    for rank in (1, 4, 8):
        assert sdxl.layout(rank=rank, train_down=True).num_parameters == 1_451_520 * rank
    shared = sdxl.layout().num_parameters
    assert shared == sum(4 * module.out_features for module in sdxl.layout().modules)
    assert 0.45 < shared / (4 * 1_451_520) < 0.5  # about half; cross-attention keys and values read 2048


@pytest.mark.parametrize("name", BASE_PRESETS)
def test_narrow_models_have_exactly_the_same_names(name):
    whole, narrow = BASE_PRESETS[name], MINI_PRESETS[name]
    weights = [set(preset.build_unet().state_dict()) for preset in (whole, narrow)]
    assert weights[0] == weights[1]
    for targets in TARGETS:
        modules = [[module.name for module in p.layout(targets).modules] for p in (whole, narrow)]
        assert modules[0] == modules[1]


def test_the_layout_of_a_folder_is_the_layout_of_its_preset(mini_pipelines):
    from difflora.base_model import BaseModel

    for name, preset in MINI_PRESETS.items():
        found = LoraLayout.from_model(BaseModel.load(mini_pipelines[name]).denoiser, TARGETS["attention"])
        assert found.fingerprint == preset.layout().fingerprint

"""A LoRA either fits completely or is refused; no ComfyUI needed.

The file imports from the pack relatively, so it is imported as ComfyUI does: in a package of another name.
"""

from __future__ import annotations

import sys
import types
from importlib import import_module
from pathlib import Path

import pytest
import torch

PACK = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pack():
    """(match_lora, LayoutError) of the pack."""
    for name, path in (("loose_pack", PACK), ("loose_pack.nodes", PACK / "nodes")):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(path)]
    module = import_module("loose_pack.nodes._match_lora")
    yield module.match_lora, module.LayoutError
    for name in [name for name in sys.modules if name.split(".")[0] == "loose_pack"]:
        del sys.modules[name]


KEY_MAP = {
    "lora_unet_a": "model.a.weight",
    "lora_unet_b": ("model.fused.weight", (0, 8, 4)),
    "lora_unet_norm": "n",
}
SHAPES = {"model.a.weight": (6, 5), "model.fused.weight": (12, 3, 1, 1), "n": (7,)}


def lora_for(name: str, out_features: int, in_features: int, rank: int = 2) -> dict[str, torch.Tensor]:
    return {
        f"{name}.lora_up.weight": torch.ones(out_features, rank),
        f"{name}.lora_down.weight": torch.ones(rank, in_features),
        f"{name}.alpha": torch.tensor(float(rank)),
    }


def test_returns_exactly_the_modules_of_the_lora(pack):
    match_lora, _ = pack
    assert match_lora(lora_for("lora_unet_a", 6, 5), KEY_MAP, SHAPES) == {"lora_unet_a": "model.a.weight"}
    fused = match_lora(lora_for("lora_unet_b", 4, 3), KEY_MAP, SHAPES)  # rows 8..12 of a fused weight
    assert fused == {"lora_unet_b": KEY_MAP["lora_unet_b"]}


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ({}, "it is empty"),
        (lora_for("lora_unet_other", 6, 5), "lora_unet_other is not in this MODEL"),
        (lora_for("lora_unet_norm", 7, 1), "lora_unet_norm is not in this MODEL"),
        (lora_for("lora_unet_a", 6, 4), "lora_unet_a is 6 x 4, in this MODEL 6 x 5"),
        ({**lora_for("lora_unet_a", 6, 5), **lora_for("lora_unet_b", 5, 3)}, "1 of 2 modules"),
        (
            {k: v for k, v in lora_for("lora_unet_a", 6, 5).items() if "down" not in k},
            "lora_unet_a lacks lora_down",
        ),
        ({k: v * float("nan") for k, v in lora_for("lora_unet_a", 6, 5).items()}, "holds NaN"),
        ({"base_model.model.a.lora_A.weight": torch.ones(2, 5)}, "not in this MODEL"),
    ],
)
def test_refuses_what_does_not_fit(pack, lora, words):
    match_lora, layout_error = pack
    with pytest.raises(layout_error, match=words) as caught:
        match_lora(lora, KEY_MAP, SHAPES)
    assert "Connect the MODEL" in str(caught.value)

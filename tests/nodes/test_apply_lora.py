"""Block weights and CLIP of Apply DiffLoRA, and that nothing of a LoRA stays behind."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import prompts
from host_server import ExecutionFailed

pytestmark = pytest.mark.host


def test_block_weights_change_the_picture_and_all_off_is_the_base_model(server):
    base = prompts.pictures(server, prompts.plain())
    full = prompts.pictures(server, prompts.applied())
    inner = prompts.pictures(server, prompts.applied(block_preset="inner blocks only"))
    off = prompts.pictures(server, prompts.applied(block_preset="inner blocks only", block_weights="ALL=0"))
    np.testing.assert_array_equal(off, base)  # typed weights take the place of the preset
    assert np.abs(full - base).mean() > 2
    assert np.abs(inner - full).mean() > 0.5 and np.abs(inner - base).mean() > 0.5
    half = prompts.pictures(server, prompts.applied(1.0, block_weights="0.5,0.5,0.5,0.5,0.5,0.5,0.5"))
    weaker = prompts.pictures(server, prompts.applied(0.5))
    assert np.abs(half - weaker).max() <= 1  # weights that are all alike are a strength


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_model_in_half_precision_draws_the_same_person(server, precision):
    full = prompts.pictures(server, prompts.applied())
    graph = prompts.applied(model=["half", 0])
    graph["half"] = prompts.node("TestOtherModel", kind=precision, model=["world", 0])
    half = prompts.pictures(server, graph)
    somebody = prompts.pictures(server, prompts.plain())
    assert 0 < np.abs(half - full).mean() < 0.5 * np.abs(full - somebody).mean()


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"block_weights": "1,0"}, "2 block weights were given, but this LoRA has 7 blocks"),
        ({"block_weights": "OUT11=1"}, "no module in OUT11"),
        ({"block_preset": "SDXL: style off (OUT01)"}, "is for SDXL"),
        ({"block_preset": "no such"}, r"unknown block preset|not in list"),  # 0.3.64 checks no V3 lists
    ],
)
def test_nonsense_is_one_clear_error(server, inputs, words):
    with pytest.raises(ExecutionFailed, match=words):
        server.run(prompts.applied(**inputs))


def test_clip_passes_through(server):
    graph = prompts.applied(clip=["world", 1])
    expected = prompts.pictures(server, prompts.applied())
    graph["positive"]["inputs"]["clip"] = ["apply", 1]
    np.testing.assert_array_equal(prompts.pictures(server, graph), expected)


def test_text_encoder_of_a_foreign_lora_needs_clip_and_then_counts(server):
    graph = prompts.applied(lora=["wrong", 0])
    graph["wrong"] = prompts.node("TestLora", kind="text_encoder", lora=["lora", 0])
    with pytest.raises(ExecutionFailed, match="connect CLIP"):
        server.run(graph)
    graph["apply"]["inputs"]["clip"] = ["world", 1]
    graph["positive"]["inputs"]["clip"] = ["apply", 1]
    changed = prompts.pictures(server, graph) - prompts.pictures(server, prompts.applied())
    assert np.abs(changed).mean() > 0.5
    graph["apply"]["inputs"]["block_weights"] = "ALL=0"  # of the U-Net only
    assert np.abs(prompts.pictures(server, graph) - prompts.pictures(server, prompts.plain())).mean() > 0.5


def test_the_base_model_is_bit_identical_afterwards(server):
    before = prompts.pictures(server, prompts.plain(seed=11))
    prompts.pictures(server, prompts.applied(2.0, block_preset="outer blocks only"))
    cached: list[str] = []
    after = prompts.pictures(server, prompts.plain(seed=11), cached)
    assert "world" in cached and "sampler" not in cached  # the same MODEL object sampled again
    np.testing.assert_array_equal(after, before)

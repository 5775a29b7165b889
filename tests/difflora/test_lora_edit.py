"""Resizing, merging and block weights against delta-W = scale * up @ down, formed in full."""

import pytest
import torch

from difflora.errors import LayoutError
from difflora.layout import ATTENTION, FEED_FORWARD, LoraLayout, ModuleSpec, init_shared_down
from difflora.lora import Lora
from difflora.lora_edit import merge_loras, resize_lora, scale_blocks


@pytest.fixture
def make(tiny_base, random_weights):
    """Function: a random LoRA; by default `lora_down` is its own."""

    def make(seed, rank=4, alpha=6.0, targets=ATTENTION + FEED_FORWARD, shared=None, metadata=None):
        layout = LoraLayout.from_model(tiny_base.denoiser, targets, rank, alpha, train_down=shared is None)
        return Lora.from_flat(layout, random_weights(layout, 1, seed)[0], shared, metadata)

    return make


def changes(lora):
    return {name: lora.layout.scale * up.double() @ lora.down[name].double() for name, up in lora.up.items()}


def check_close(lora, expected):
    found = changes(lora)
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], atol=2e-6, rtol=0)


@pytest.mark.parametrize("rank", [1, 3])
def test_resizing_is_the_best_approximation_of_its_rank(make, rank):
    lora = make(1)
    expected = {}
    for name, change in changes(lora).items():  # the SVD of the full matrix (Eckart, Young)
        u, s, vh = torch.linalg.svd(change, full_matrices=False)
        expected[name] = (u[:, :rank] * s[:rank]) @ vh[:rank]
    resized = resize_lora(lora, rank)
    assert (resized.layout.rank, resized.layout.scale) == (rank, lora.layout.scale)
    check_close(resized, expected)


def test_a_larger_rank_changes_nothing(make):
    lora = make(1, rank=2)
    larger = resize_lora(lora, 5)
    assert larger.layout.rank == 5
    check_close(larger, changes(lora))
    with pytest.raises(LayoutError, match=r"rank 9 is not in 1\.\.8"):  # the narrowest module
        resize_lora(lora, 9)
    with pytest.raises(LayoutError, match="rank 0"):
        resize_lora(lora, 0)


def test_merging_different_loras_adds_ranks(make):
    loras = [make(1, rank=2), make(2, rank=3, alpha=1.0, targets=ATTENTION), make(3, rank=1)]
    strengths = [1.0, -0.5, 2.0]
    merged = merge_loras(loras, strengths)
    assert merged.layout.rank == 6
    assert merged.layout.modules == loras[0].layout.modules  # ATTENTION is part of them
    expected = {name: torch.zeros_like(change) for name, change in changes(loras[0]).items()}
    for lora, strength in zip(loras, strengths, strict=True):
        for name, change in changes(lora).items():
            expected[name] = expected[name] + strength * change
    check_close(merged, expected)
    # resized on the way: as if resized afterwards
    check_close(merge_loras(loras, strengths, rank=2), changes(resize_lora(merged, 2)))


def test_a_summed_rank_beyond_the_modules_needs_a_rank(make):
    loras = [make(seed) for seed in (1, 2, 3)]
    for rank, wrong in ((None, 12), (0, 0)):
        with pytest.raises(LayoutError, match=rf"rank {wrong} is not in 1\.\.8"):
            merge_loras(loras, rank=rank)
    expected = {}
    for name, parts in {name: [changes(lora)[name] for lora in loras] for name in loras[0].up}.items():
        u, s, vh = torch.linalg.svd(sum(parts), full_matrices=False)
        expected[name] = (u[:, :5] * s[:5]) @ vh[:5]
    check_close(merge_loras(loras, rank=5), expected)


def test_merging_loras_of_one_library_keeps_rank_and_layout(make):
    shared = init_shared_down(make(0).layout)
    loras = [make(seed, shared=shared) for seed in range(1, 4)]
    merged = merge_loras(loras, [0.5, 0.25, 0.25])
    assert merged.layout == loras[0].layout
    assert merged.down.keys() == shared.keys()
    assert all(torch.equal(merged.down[name], shared[name]) for name in shared)
    flat = 0.5 * loras[0].flat() + 0.25 * loras[1].flat() + 0.25 * loras[2].flat()
    torch.testing.assert_close(merged.flat(), flat)
    # with a foreign one beside them, only its rank is added
    foreign = make(9, rank=2)
    both = merge_loras([*loras, foreign], [0.5, 0.25, 0.25, 1.0])
    assert both.layout.rank == 4 + 2
    own, other = changes(merged), changes(foreign)
    check_close(both, {name: own[name] + other[name] for name in own})


def test_metadata_of_a_merged_lora(make):
    common = {"ss_base_model_version": "sd_v1"}
    ann = make(1, rank=1, metadata={**common, "modelspec.title": "Ann", "difflora.seed": "1"})
    bob = make(2, rank=1, metadata={**common, "modelspec.title": "Bob", "difflora.seed": "2"})
    assert dict(merge_loras([ann, bob]).metadata) == {
        **common,
        "modelspec.title": "Ann + Bob",
        "modelspec.merged_from": "Ann, Bob",
    }


def test_what_cannot_be_merged(make):
    lora = make(1)
    for loras, strengths in (([], None), ([lora], [1.0, 2.0]), ([lora], [float("nan")])):
        with pytest.raises(LayoutError, match="give at least one"):
            merge_loras(loras, strengths)
    wider = LoraLayout((ModuleSpec(lora.layout.modules[0].name, 99, 99),), 1, 1.0, train_down=True)
    other = Lora.from_flat(wider, torch.ones(wider.num_parameters), None)
    with pytest.raises(LayoutError, match="same base model"):
        merge_loras([lora, other])


def test_block_weights(make):
    lora = make(1)
    # tiny_base, layers per level 1: level 0 going down is IN01, level 1 going up is OUT02 and OUT03
    scaled = scale_blocks(lora, {"IN01": 0.5, "OUT03": 0.0, "M00": -1.0})
    assert scaled.layout == lora.layout
    weights = {"down_blocks.0.attentions.0": 0.5, "mid_block": -1.0, "up_blocks.1.attentions.1": 0.0}
    expected = {}
    for name, change in changes(lora).items():
        weight = next((w for block, w in weights.items() if name.startswith(f"{block}.")), 1.0)
        expected[name] = weight * change
    assert sum(not change.any() for change in expected.values()) == 10  # one transformer block
    check_close(scaled, expected)
    with pytest.raises(LayoutError, match="no module in IN07: it has blocks IN01, M00, OUT02, OUT03"):
        scale_blocks(lora, {"IN07": 1.0})
    with pytest.raises(LayoutError, match="weight of IN01 is not a finite"):
        scale_blocks(lora, {"IN01": float("inf")})

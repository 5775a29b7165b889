"""A layout is found in a model, is its own inverse as text and as a vector, and refuses what does not fit."""

import json

import pytest
import torch

from difflora.errors import LayoutError
from difflora.layout import DOWN_ROW_NORM, LoraLayout, ModuleSpec, init_shared_down, orthogonal_rows


def layout_of(base, **options):
    return LoraLayout.from_model(base.denoiser, **options)


def test_default_targets_are_attention_and_feed_forward(tiny_base):
    layout = layout_of(tiny_base)
    # 1 block down, 1 in the middle, 2 up; each has 2 x 4 attention projections and 2 feed-forward layers
    assert len(layout.modules) == 4 * 10
    assert layout.rank == 4
    assert layout.scale == 1.0
    assert layout.num_parameters == sum(m.out_features * 4 for m in layout.modules)
    both = layout_of(tiny_base, train_down=True)
    assert both.num_parameters == sum((m.out_features + m.in_features) * 4 for m in layout.modules)


def test_flatten_inverts_unflatten_for_any_leading_dimensions(tiny_base):
    for train_down in (False, True):
        layout = layout_of(tiny_base, train_down=train_down, rank=2)
        flat = torch.randn(3, 2, layout.num_parameters)
        tensors = layout.unflatten(flat)
        assert all(tensors[spec.module, spec.part].shape == (3, 2, *spec.shape) for spec in layout.tensors)
        assert torch.equal(layout.flatten(tensors), flat)
        first = layout.tensors[0]
        assert tensors[first.module, first.part].data_ptr() == flat.data_ptr()  # a view


def test_json_round_trip_and_fingerprint(tiny_base):
    layout = layout_of(tiny_base, alpha=8)
    again = LoraLayout.from_json(layout.to_json())
    assert again == layout
    assert again.fingerprint == layout.fingerprint
    assert len(layout.fingerprint) == 16
    others = [
        layout_of(tiny_base, alpha=4),
        layout_of(tiny_base, rank=3, alpha=8),
        layout_of(tiny_base, train_down=True),
    ]
    assert len({layout.fingerprint, *(other.fingerprint for other in others)}) == 4


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"modules": [], "rank": 4}'])
def test_foreign_json_is_refused(text):
    with pytest.raises(LayoutError):
        LoraLayout.from_json(text)


def test_unknown_key_in_json_is_refused(tiny_base):
    fields = json.loads(layout_of(tiny_base).to_json())
    with pytest.raises(LayoutError, match="surprise"):
        LoraLayout.from_json(json.dumps({**fields, "surprise": 1}))


def test_targets_that_match_nothing_and_impossible_ranks(tiny_base):
    with pytest.raises(LayoutError, match="to_nowhere"):
        layout_of(tiny_base, targets=("attn1.to_q", "to_nowhere"))
    with pytest.raises(LayoutError, match=r"rank 9 is not in 1\.\.8"):
        layout_of(tiny_base, rank=9)
    with pytest.raises(LayoutError, match="alpha"):
        layout_of(tiny_base, alpha=0)
    module = ModuleSpec("x", 8, 8)
    with pytest.raises(LayoutError, match="twice"):
        LoraLayout((module, module), 1, 1.0)


def test_wrong_factors_are_listed(tiny_base):
    layout = layout_of(tiny_base)
    flat = torch.zeros(layout.num_parameters)
    with pytest.raises(LayoutError, match="do not fit a layout"):
        layout.unflatten(flat[:-1])
    tensors = layout.unflatten(flat)
    first, second = list(tensors)[:2]
    wrong = {**tensors, ("other", "lora_up"): flat, first: tensors[first].mT}
    del wrong[second]
    with pytest.raises(LayoutError, match=r"missing.*unexpected|unexpected.*missing") as error:
        layout.flatten(wrong)
    assert "has shape" in str(error.value)
    with pytest.raises(LayoutError, match="shared_down"):
        layout.factors(flat, None)


def test_shared_down_is_seeded_and_has_orthogonal_rows(tiny_base):
    layout = layout_of(tiny_base)
    downs, again, other = (init_shared_down(layout, seed) for seed in (5, 5, 6))
    for module in layout.modules:
        down = downs[module.name]
        assert down.shape == (4, module.in_features)
        assert torch.equal(down, again[module.name])
        assert not torch.equal(down, other[module.name])
        torch.testing.assert_close(down @ down.T, DOWN_ROW_NORM**2 * torch.eye(4), atol=1e-6, rtol=0)
        torch.testing.assert_close(orthogonal_rows(down), down, atol=1e-6, rtol=0)  # a fixed point

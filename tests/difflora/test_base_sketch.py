"""The sketch: closed forms of linearity, mean and error; the verdict; what does not fit is refused."""

import math
from dataclasses import replace

import pytest
import torch

from difflora import base_sketch
from difflora.base_sketch import BaseSketch, base_fit, random_signs, sketch_base
from difflora.errors import LayoutError
from difflora.layout import LoraLayout, ModuleSpec

NAMES = tuple(f"mid_block.attentions.0.transformer_blocks.{n}.attn1.to_q" for n in range(30))
LAYOUT = LoraLayout(tuple(ModuleSpec(name, 48, 32) for name in NAMES), 4, 4.0)


def weights(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {f"{name}.weight": scale * torch.randn(32, 48, generator=generator) for name in NAMES}


def plus(a, b, factor=1.0):
    return {name: a[name] + factor * b[name] for name in a}


def true_distance(a, b):
    return math.sqrt(
        sum(float((a[n] - b[n]).square().sum()) for n in a) / sum(float(a[n].square().sum()) for n in a)
    )


def test_signs_are_the_bits_of_shake_128():
    # shake_128(b"difflora-signs-1/a").digest(2), least significant bit first
    import hashlib

    octets = hashlib.shake_128(b"difflora-signs-1/a").digest(2)
    bits = [(octets[i // 8] >> i % 8) & 1 for i in range(11)]
    assert random_signs("a", 11).tolist() == [2.0 * bit - 1 for bit in bits]
    assert abs(random_signs("a", 100_000).mean()) < 4 / math.sqrt(100_000)
    assert not torch.equal(random_signs("a", 100), random_signs("b", 100))


def test_sketch_is_linear_and_its_norms_are_exact():
    a, b = weights(0), weights(1)
    own, other, both = (sketch_base(LAYOUT, w) for w in (a, b, plus(a, b, -2.0)))
    torch.testing.assert_close(
        both.projections, own.projections - 2 * other.projections, atol=1e-4, rtol=1e-5
    )
    assert own.projections.shape == (30, base_sketch.SKETCH_SIZE)
    torch.testing.assert_close(own.squared_norms, torch.stack([w.square().sum() for w in a.values()]))
    # one number alone lies in one place, whatever its sign
    spike = {name: torch.zeros(32, 48) for name in a}
    spike[f"{NAMES[3]}.weight"][2, 5] = -3.0
    place = (2 * 48 + 5) % base_sketch.SKETCH_SIZE
    expected = torch.zeros(30, base_sketch.SKETCH_SIZE)
    expected[3, place] = 3.0
    assert torch.equal(sketch_base(LAYOUT, spike).projections.abs(), expected)


def test_estimate_is_unbiased_with_the_stated_error():
    base = weights(0)
    ratios, told = [], []
    for seed in range(1, 101):
        model = plus(base, weights(seed), 0.1)
        fit = base_fit(sketch_base(LAYOUT, base, size=8), LAYOUT, model, "base")
        ratios.append((fit.distance / true_distance(base, model)) ** 2)
        told.append(2 * fit.standard_error / fit.distance)
    ratios, told = torch.tensor(ratios), torch.tensor(told)
    error = math.sqrt(2 / (8 * 30))  # sqrt(2 / (K M)) of the squared distance
    assert ratios.mean() == pytest.approx(1.0, abs=4 * error / 10)
    assert ratios.std() == pytest.approx(error, rel=0.3)
    assert told.mean() == pytest.approx(error, rel=0.15)


def test_known_distances():
    base = weights(0)
    sketch = sketch_base(LAYOUT, base)
    assert base_fit(sketch, LAYOUT, base, "base").distance == 0.0
    # W = 1.1 W0: every matrix moves by a tenth of itself
    assert base_fit(sketch, LAYOUT, plus(base, base, 0.1), "base").distance == pytest.approx(0.1, rel=0.05)
    # unrelated weights of the same size: sqrt(2)
    assert base_fit(sketch, LAYOUT, weights(7), "base").distance == pytest.approx(math.sqrt(2), rel=0.06)
    # float16 rounds by 2^-11 at most
    rounded = {name: weight.half() for name, weight in base.items()}
    assert base_fit(sketch, LAYOUT, rounded, "base").distance < 2**-11


def test_warning_is_one_sentence_with_both_numbers():
    base = weights(0)
    sketch = sketch_base(LAYOUT, base)
    near = base_fit(sketch, LAYOUT, plus(base, base, 0.5 * base_sketch.FAR), "realistic")
    assert near.warning is None and not near.is_far
    far = base_fit(sketch, LAYOUT, plus(base, base, 2 * base_sketch.FAR), "realistic")
    assert far.is_far and "realistic" in far.warning and f"{far.distance:.0%}" in far.warning
    assert far.warning.count(". ") == 0


def test_what_does_not_fit_is_refused():
    sketch = sketch_base(LAYOUT, weights(0))
    with pytest.raises(LayoutError, match="nothing was patched"):
        base_fit(sketch, LAYOUT, {"x.weight": torch.zeros(2, 2)}, "base")
    fewer = replace(LAYOUT, modules=LAYOUT.modules[:5])
    with pytest.raises(LayoutError, match="30 modules, the layout 5"):
        base_fit(sketch, fewer, weights(0), "base")
    with pytest.raises(LayoutError, match="not finite"):
        BaseSketch(sketch.projections / 0, sketch.squared_norms)
    with pytest.raises(LayoutError, match=r"\(M, K\) and \(M,\)"):
        BaseSketch(sketch.projections, sketch.squared_norms[:3])

"""Normalised weights have zero mean and unit RMS per tensor, and come back."""

import pytest
import torch

from difflora.errors import LayoutError
from difflora.layout import LoraLayout
from difflora.normalisation import LoraNormalisation


def test_statistics_and_inverse(tiny_base, random_weights):
    layout = LoraLayout.from_model(tiny_base.denoiser)
    flat = 3 + random_weights(layout, 50) * torch.linspace(0.1, 5, layout.num_parameters)
    first, last = layout.tensors[0], layout.tensors[-1]
    flat[:, first.start : first.stop] = 1.5  # a tensor that never varies
    normalisation = LoraNormalisation.fit(flat, layout)
    normalised = normalisation.normalise(flat)
    torch.testing.assert_close(normalised.mean(dim=0), torch.zeros(layout.num_parameters), atol=1e-4, rtol=0)
    for spec in layout.tensors[1:]:
        rms = normalised[:, spec.start : spec.stop].square().mean().sqrt()
        torch.testing.assert_close(rms, torch.tensor(1.0), atol=1e-4, rtol=0)
    assert torch.equal(normalised[:, first.start : first.stop], torch.zeros(50, first.stop - first.start))
    torch.testing.assert_close(normalisation.denormalise(normalised), flat)
    # inside a tensor proportions are kept: the last tensor's numbers have their own, increasing sizes
    sizes = normalised[:, last.start : last.stop].std(dim=0)
    raw = flat[:, last.start : last.stop].std(dim=0)
    torch.testing.assert_close(sizes / raw, (sizes / raw).mean().expand(len(raw)))


def test_tensors_round_trip_and_misfits(tiny_base, random_weights):
    layout = LoraLayout.from_model(tiny_base.denoiser)
    other = LoraLayout.from_model(tiny_base.denoiser, rank=2)
    normalisation = LoraNormalisation.fit(random_weights(layout, 3), layout)
    again = LoraNormalisation.from_tensors(normalisation.tensors(), layout)
    assert torch.equal(again.mean, normalisation.mean)
    assert torch.equal(again.rms, normalisation.rms)
    with pytest.raises(LayoutError, match="another layout"):
        LoraNormalisation.from_tensors(normalisation.tensors(), other)
    with pytest.raises(LayoutError, match="mean and rms"):
        LoraNormalisation.from_tensors({"mean": normalisation.mean}, layout)
    with pytest.raises(LayoutError, match="n >= 2"):
        LoraNormalisation.fit(random_weights(layout, 1), layout)
    with pytest.raises(LayoutError, match="not finite"):
        LoraNormalisation.fit(random_weights(layout, 3) / 0, layout)

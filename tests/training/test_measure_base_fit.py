"""The models that are compared are as far from the base as they are said to be."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from difflora.layout import LoraLayout
from training.measure_base_fit import true_distance, with_noise


@dataclass(frozen=True)
class Base:
    denoiser: nn.Module


@pytest.fixture
def base():
    torch.manual_seed(0)
    return Base(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)).requires_grad_(False))


@pytest.mark.parametrize("amount", [0.1, 0.8])
def test_noise_is_relative_to_the_norm_of_each_matrix(base, amount):
    layout = LoraLayout.from_model(base.denoiser, ("0", "1"), rank=1)
    before = [parameter.clone() for parameter in base.denoiser.parameters()]
    noisy = with_noise(base, layout, amount)
    assert true_distance(base, noisy, layout) == pytest.approx(amount, rel=1e-4)
    for number in (0, 1):
        change = noisy.denoiser[number].weight - base.denoiser[number].weight
        assert float(change.norm() / base.denoiser[number].weight.norm()) == pytest.approx(amount, rel=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(before, base.denoiser.parameters(), strict=True))
    assert true_distance(base, base, layout) == 0

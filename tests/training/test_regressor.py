"""The regressor that we are timed against has the published sizes and really computes a LoRA."""

import torch

from difflora.layout import LoraLayout, ModuleSpec
from training.base_presets import SDXL
from training.regressor import LoraRegressor, RegressorConfig

SMALL = RegressorConfig(16, 1, 2, 3, image_tokens=5, image_width=6, face_tokens=2, face_width=8)
LAYOUT = LoraLayout((ModuleSpec("a", 4, 6), ModuleSpec("b", 6, 4)), rank=2, alpha=2.0, train_down=True)


def test_published_sizes():
    layout = SDXL.layout(rank=8, train_down=True)
    with torch.device("meta"):
        regressor = LoraRegressor(layout, RegressorConfig())
    assert regressor.queries.shape == (1120, 1024)
    assert sum(bases.numel() for bases in regressor.bases) == 128 * 11_612_160


def test_factors_are_mixtures_of_the_bases():
    torch.manual_seed(0)
    regressor = LoraRegressor(LAYOUT, SMALL)
    for bases in regressor.bases:
        torch.nn.init.normal_(bases)
    with torch.no_grad():
        for parameter in (regressor.to_coefficients.weight, regressor.to_coefficients.bias):
            parameter.zero_()
        regressor.to_coefficients.bias[1] = 2.0  # the second of three bases, twice
        factors = regressor(torch.randn(1, 5, 6), torch.randn(1, 8))
    assert {key: tuple(f.shape[1:]) for key, f in factors.items()} == {
        (spec.module, spec.part): spec.shape for spec in LAYOUT.tensors
    }
    for group, bases in zip(regressor.groups, regressor.bases, strict=True):
        for row, i in enumerate(group):
            spec = LAYOUT.tensors[i]
            expected = 2 * bases[row, 1].unflatten(0, spec.shape)
            torch.testing.assert_close(factors[spec.module, spec.part][0], expected)


def test_the_photo_matters():
    torch.manual_seed(0)
    regressor = LoraRegressor(LAYOUT, SMALL)
    with torch.no_grad():
        one, other = (regressor(torch.randn(1, 5, 6), torch.randn(1, 8)) for _ in range(2))
    assert all(not torch.equal(one[key], other[key]) for key in one)

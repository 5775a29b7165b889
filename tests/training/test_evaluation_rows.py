"""Controls fitted on a library whose LoRAs are a linear map of the features."""

import pytest
import torch

from difflora.layout import LoraLayout, ModuleSpec, init_shared_down
from training.evaluation_rows import REGULARISERS, Controls
from training.lora_library import Library

LAYOUT = LoraLayout((ModuleSpec("proj", 8, 10),), rank=2, alpha=2.0)
FACE, IMAGE, PHOTOS, PEOPLE = 6, 3, 4, 40


@pytest.fixture
def world(generator):
    face = torch.nn.functional.normalize(torch.randn(PEOPLE, FACE, generator=generator), dim=-1)
    image = 50 * torch.randn(PEOPLE, PHOTOS, IMAGE, generator=generator)  # says nothing, in large units
    features = torch.cat([face[:, None].expand(-1, PHOTOS, -1), image], dim=-1)  # (n, N, C)
    flat = face @ torch.randn(FACE, LAYOUT.num_parameters, generator=generator)  # (n, P)
    valid = torch.ones(PEOPLE, PHOTOS, dtype=torch.bool)
    valid[0, 1:] = False
    library = Library(LAYOUT, init_shared_down(LAYOUT), flat, torch.arange(PEOPLE))
    return library, features * valid[..., None], valid


def test_nearest_and_mean_are_what_they_say(world):
    library, features, valid = world
    controls = Controls(library, features, valid, FACE)
    assert torch.equal(controls.nearest(features[:, 0]), library.flat)
    assert torch.allclose(controls.mean(features[:, 0])[7], library.flat.mean(0))


def test_ridge_finds_the_linear_map(world):
    library, features, valid = world
    controls = Controls(library, features, valid, FACE)
    errors = [
        float((controls.ridge(features[:, 0], r) - library.flat).square().mean() / library.flat.var())
        for r in REGULARISERS
    ]
    assert errors[0] < 0.01
    assert errors == sorted(errors)  # more regularisation, more shrinkage


def test_mlp_does_not_lose_what_ridge_finds(world):
    library, features, valid = world
    controls = Controls(library, features, valid, FACE)
    error = (controls.mlp(features[:, 0]) - library.flat).square().mean() / library.flat.var()
    assert float(error) < 0.5

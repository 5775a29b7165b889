"""Controls against other ways to compute the same."""

import pytest
import torch

from difflora.controls import (
    MlpRegression,
    PrincipalComponents,
    RidgeRegression,
    mean_lora,
    nearest_lora,
)
from difflora.errors import LayoutError


@pytest.fixture
def library(generator):
    return torch.randn(12, 200, generator=generator) * torch.linspace(3, 0.1, 200)


def test_components_are_those_of_the_singular_value_decomposition(library):
    components = PrincipalComponents.fit(library, 5)
    _, _, rows = torch.linalg.svd(library - library.mean(0), full_matrices=False)
    assert torch.allclose((components.basis @ rows[:5].T).abs(), torch.eye(5), atol=1e-3)  # equal up to sign


def test_all_components_give_the_library_back(library):
    components = PrincipalComponents.fit(library, len(library) - 1)
    assert torch.allclose(components.reconstruct(components.project(library)), library, atol=1e-4)
    assert torch.allclose(components.reconstruct(torch.zeros(1, 11))[0], mean_lora(library), atol=1e-6)


def test_directions_that_the_library_lacks_are_left_out(generator):
    flat = torch.randn(12, 3, generator=generator) @ torch.randn(3, 200, generator=generator)
    components = PrincipalComponents.fit(flat, 8)
    assert torch.allclose(components.basis @ components.basis.T, torch.eye(3), atol=1e-4)
    assert torch.allclose(components.reconstruct(components.project(flat)), flat, atol=1e-3)


def test_too_many_components_name_the_limit(library):
    with pytest.raises(LayoutError, match="1 to 11"):
        PrincipalComponents.fit(library, 12)


def test_ridge_equals_least_squares_with_the_penalty_as_extra_rows(generator):
    x, y = torch.randn(40, 6, generator=generator), torch.randn(40, 3, generator=generator)
    ridge = RidgeRegression.fit(x, y, regulariser=0.2)
    x_c, y_c = x - x.mean(0), y - y.mean(0)
    penalty = (0.2 * x_c.square().sum(0).mean()).sqrt() * torch.eye(6)  # |W|^2 as residuals
    rows, wanted = torch.cat([x_c, penalty]), torch.cat([y_c, torch.zeros(6, 3)])
    assert torch.allclose(ridge.weights, torch.linalg.lstsq(rows, wanted).solution, atol=1e-5)
    assert torch.allclose(ridge.predict(x.mean(0, keepdim=True)), y.mean(0, keepdim=True), atol=1e-6)


def test_ridge_recovers_a_linear_map(generator):
    x, true = torch.randn(50, 6, generator=generator), torch.randn(6, 3, generator=generator)
    assert torch.allclose(RidgeRegression.fit(x, x @ true, 0.0).predict(x), x @ true, atol=1e-4)


def test_everybody_in_the_library_is_their_own_nearest(library, generator):
    embedding = torch.nn.functional.normalize(torch.randn(12, 32, generator=generator), dim=-1)
    assert torch.equal(nearest_lora(embedding, embedding, library), library)


def test_an_mlp_finds_what_no_line_can(generator):
    x = torch.randn(400, 4, generator=generator)
    y = torch.stack([x[:, 0].abs(), x[:, 1] * x[:, 2]], dim=1)  # nothing in it is linear
    held_out = torch.arange(400) >= 320
    fresh = torch.randn(200, 4, generator=generator)
    wanted = torch.stack([fresh[:, 0].abs(), fresh[:, 1] * fresh[:, 2]], dim=1)
    state = torch.random.get_rng_state()
    mlp = MlpRegression.fit(x, y, held_out, num_steps=600)
    assert torch.equal(torch.random.get_rng_state(), state)  # nobody else's randomness
    line = RidgeRegression.fit(x, y, 0.01)
    errors = [float((model.predict(fresh) - wanted).square().mean()) for model in (mlp, line)]
    assert errors[0] < 0.5 * errors[1]
    assert not mlp.predict(fresh).requires_grad
    again = MlpRegression.fit(x, y, held_out, num_steps=600)
    assert torch.equal(again.predict(fresh), mlp.predict(fresh))


def test_an_mlp_keeps_the_step_that_held_out_people_like_best(generator):
    x, y = torch.randn(60, 8, generator=generator), torch.randn(60, 3, generator=generator)  # noise only
    held_out = torch.arange(60) >= 40
    errors = [
        float((MlpRegression.fit(x, y, held_out, num_steps=n).predict(x) - y)[held_out].square().mean())
        for n in (25, 400)
    ]
    assert errors[1] <= errors[0] + 1e-6  # memorising the rest is not kept
    with pytest.raises(LayoutError, match="held-out"):
        MlpRegression.fit(x, y, torch.zeros(60, dtype=torch.bool))

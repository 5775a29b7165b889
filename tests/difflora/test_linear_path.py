"""The LAE's linear path is principal component analysis, which training leaves alone."""

from dataclasses import replace

import pytest
import torch

from difflora.autoencoder import LoraAutoencoder, explained_variance
from difflora.base_model import weights_fingerprint
from difflora.controls import PrincipalComponents
from difflora.errors import DiffLoRAError
from tests.difflora.test_autoencoder import CONFIG, LAYOUT

RANK = 12
PATH = replace(CONFIG, linear_rank=RANK)


@pytest.fixture
def library() -> torch.Tensor:
    torch.manual_seed(0)
    sizes = torch.linspace(3, 0.1, 40)
    return torch.randn(60, 40) * sizes @ torch.randn(40, LAYOUT.num_parameters) / 40**0.5 + 1.0


def test_it_starts_as_principal_component_analysis(library: torch.Tensor) -> None:
    lae = LoraAutoencoder(LAYOUT, PATH)
    lae.start_from_components(library)
    components = PrincipalComponents.fit(library, RANK)
    expected = components.mean + components.project(library) @ components.basis
    with torch.no_grad():
        decoded = lae.decode(lae.encode(library))
    torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-3)
    assert explained_variance(decoded, library) < 0.999  # or any map would pass


def test_latent_numbers_are_uncorrelated_and_the_first_ones_matter_most(library: torch.Tensor) -> None:
    lae = LoraAutoencoder(LAYOUT, PATH)
    lae.start_from_components(library)
    with torch.no_grad():
        latent = lae.encode(library).flatten(1)  # (n, N)
    covariance = latent.mT.cov()
    spread = covariance.diagonal()
    assert bool((spread[:-1] >= spread[1:]).all())
    torch.testing.assert_close(covariance, spread.diag(), rtol=0, atol=1e-2 * float(spread[0]))


def test_few_loras_leave_the_rest_of_the_path_unused(library: torch.Tensor) -> None:
    lae = LoraAutoencoder(LAYOUT, PATH)
    lae.start_from_components(library[:4])
    with torch.no_grad():
        decoded = lae.decode(lae.encode(library[:4]))
    torch.testing.assert_close(decoded, library[:4], rtol=0, atol=1e-3)  # four points span three directions
    assert lae.linear_path is not None and not lae.linear_path.basis[3:].any()


def test_a_latent_longer_than_the_path_keeps_its_shape(library: torch.Tensor) -> None:
    lae = LoraAutoencoder(LAYOUT, replace(PATH, linear_rank=5))
    lae.start_from_components(library)
    with torch.no_grad():
        latent = lae.encode(library)  # (n, S, C)
        decoded = lae.decode(latent)
    assert latent.shape[1:] == (CONFIG.latent_tokens, CONFIG.latent_channels)
    assert not latent.flatten(1)[:, 5:].any()  # the convolutions have not learnt anything yet
    components = PrincipalComponents.fit(library, 5)
    expected = components.reconstruct(components.project(library))
    torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-3)


def test_no_gradient_reaches_the_components(library: torch.Tensor) -> None:
    lae = LoraAutoencoder(LAYOUT, PATH)
    lae.start_from_components(library)
    assert lae.linear_path is not None and not list(lae.linear_path.parameters())
    lae.decode(lae.encode(library)).square().sum().backward()  # the convolutions still learn
    assert lae.tokens_to_weights.bias.grad is not None and bool(lae.tokens_to_weights.bias.grad.any())


def test_decoder_parameters_hold_the_way_back_only() -> None:
    lae = LoraAutoencoder(LAYOUT, PATH)
    lae.decode(torch.randn(2, 3, 4)).square().sum().backward()
    used = {id(parameter) for parameter in lae.parameters() if parameter.grad is not None}
    assert used == {id(parameter) for parameter in lae.decoder_parameters()}


def test_a_rank_beyond_the_latent_is_refused() -> None:
    with pytest.raises(DiffLoRAError, match="linear_rank is 13: it must be from 0 to the 12"):
        replace(CONFIG, linear_rank=13)


def test_other_components_are_another_autoencoder(library: torch.Tensor) -> None:
    lae = LoraAutoencoder(LAYOUT, PATH)
    lae.start_from_components(library)
    before = weights_fingerprint(lae)
    assert lae.linear_path is not None
    lae.linear_path.basis[0] *= -1  # its latents mean something else now
    assert weights_fingerprint(lae) != before

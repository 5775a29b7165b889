"""LAE: the cut into tokens covers every number once; shapes; the loss against its formula; it learns."""

import pytest
import torch

from difflora.autoencoder import (
    LaeConfig,
    LoraAutoencoder,
    choose_strides,
    explained_variance,
    lae_loss,
    token_index,
)
from difflora.errors import DiffLoRAError, LayoutError
from difflora.layout import LoraLayout, ModuleSpec

LAYOUT = LoraLayout(
    (ModuleSpec("a", 8, 30), ModuleSpec("b", 8, 7), ModuleSpec("c", 8, 64)), rank=2, alpha=2.0
)
CONFIG = LaeConfig(latent_tokens=3, latent_channels=4, token_size=16, token_width=6, width=16)


def test_every_number_is_in_exactly_one_token_and_no_token_spans_tensors() -> None:
    index = token_index(LAYOUT, 16)
    assert index.shape[1] <= 16
    real = index[index < LAYOUT.num_parameters]
    assert torch.equal(real, torch.arange(LAYOUT.num_parameters))
    for row in index:
        numbers = row[row < LAYOUT.num_parameters]
        assert any(t.start <= numbers.min() and numbers.max() < t.stop for t in LAYOUT.tensors)


@pytest.mark.parametrize(("tokens", "stages"), [(130, 2), (16, 1), (3, 2), (81, 3), (2270, 4)])
def test_strides_reach_the_latent_without_much_padding(tokens: int, stages: int) -> None:
    strides = choose_strides(tokens, 16, stages)
    assert len(strides) == stages
    padded = 16 * torch.tensor(strides).prod().item()
    assert tokens <= padded <= max(16, 2 * tokens)


def test_shapes_and_errors() -> None:
    lae = LoraAutoencoder(LAYOUT, CONFIG)
    flat = torch.randn(5, LAYOUT.num_parameters)
    latent = lae.encode(flat)
    assert latent.shape == (5, 3, 4)
    assert lae.decode(latent).shape == flat.shape
    with pytest.raises(LayoutError, match="built for 202"):
        lae.encode(flat[:, :-1])
    with pytest.raises(DiffLoRAError, match="token_size"):
        LaeConfig(token_size=0)


def test_decoder_parameters_are_what_decoding_uses() -> None:
    lae = LoraAutoencoder(LAYOUT, CONFIG)
    lae.decode(torch.randn(2, 3, 4)).square().sum().backward()
    used = {id(parameter) for parameter in lae.parameters() if parameter.grad is not None}
    assert used == {id(parameter) for parameter in lae.decoder_parameters()}


def test_loss_is_its_formula() -> None:
    target, guess = torch.tensor([[1.0, -3.0, 0.0, 8.0]]), torch.zeros(1, 4)
    # mean |w| 3, weights 1 + |w| / 3 = 4/3, 2, 1, 11/3 -> 3 by the cap (by hand)
    expected = (4 / 3 * 1 + 2 * 9 + 3 * 64) / (4 / 3 + 2 + 1 + 3)
    torch.testing.assert_close(lae_loss(guess, target, 1.0, 3.0), torch.tensor([expected]))
    torch.testing.assert_close(lae_loss(guess, target, 0.0, 3.0), target.square().mean(dim=1))


def test_it_learns_a_low_dimensional_library() -> None:
    torch.manual_seed(0)
    library = torch.randn(64, 3) @ torch.randn(3, LAYOUT.num_parameters) / 3**0.5
    lae = LoraAutoencoder(LAYOUT, CONFIG)
    optimiser = torch.optim.Adam(lae.parameters(), 3e-3)
    for _ in range(200):
        loss = lae_loss(lae.decode(lae.encode(library)), library, 1.0, 5.0).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert explained_variance(lae.decode(lae.encode(library)), library) > 0.9

"""The DiT: adaLN-zero start, conditioning, attention against torch's own module."""

import pytest
import torch
from torch import nn

from difflora.errors import DiffLoRAError
from difflora.mixing import Condition
from difflora.transformer import Attention, DiffusionTransformer, DitConfig, time_features

CONFIG = DitConfig(latent_tokens=6, latent_channels=5, condition_width=12, width=16, depth=2, heads=2)


def condition(batch: int) -> Condition:
    generator = torch.Generator().manual_seed(0)
    return Condition(
        torch.randn(batch, 12, generator=generator), torch.randn(batch, 3, 12, generator=generator)
    )


def test_starts_as_zero_and_learns() -> None:
    torch.manual_seed(0)
    model = DiffusionTransformer(CONFIG)
    latent, time = torch.randn(4, 6, 5), torch.rand(4)
    assert torch.equal(model(latent, time, condition(4)), torch.zeros(4, 6, 5))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    target = torch.randn(4, 6, 5)
    for _ in range(150):
        loss = (model(latent, time, condition(4)) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.1


def test_time_vector_and_tokens_each_matter() -> None:
    torch.manual_seed(0)
    model = DiffusionTransformer(CONFIG)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    latent, time, told = torch.randn(2, 6, 5), torch.full((2,), 0.5), condition(2)
    base = model(latent, time, told)
    assert not torch.allclose(base, model(latent, time * 0.5, told))
    assert not torch.allclose(base, model(latent, time, Condition(told.vector + 1, told.tokens)))
    assert not torch.allclose(base, model(latent, time, Condition(told.vector, told.tokens.flip(-1))))


def test_attention_equals_torch() -> None:
    """The same numbers as `nn.MultiheadAttention` with the same weights."""
    torch.manual_seed(0)
    ours, theirs = Attention(16, 16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.to_query.weight, ours.to_key_value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.to_query.bias, ours.to_key_value.bias]))
    theirs.out_proj = ours.out
    x, context = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    torch.testing.assert_close(ours(x, context), theirs(x, context, context, need_weights=False)[0])


def test_time_features_are_sinusoids() -> None:
    features = time_features(torch.tensor([0.0, 0.001]), 8)
    torch.testing.assert_close(features[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    torch.testing.assert_close(features[1, 0], torch.cos(torch.tensor(1.0)))  # first frequency: 1000 x 0.001


def test_bad_width_is_refused() -> None:
    with pytest.raises(DiffLoRAError, match="multiple of"):
        DitConfig(width=20, heads=4)

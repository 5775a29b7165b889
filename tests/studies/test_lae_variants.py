"""The other autoencoders: same interface, and each differs from ours in what it says."""

from dataclasses import replace

import pytest
import torch

from difflora.autoencoder import LaeConfig, lae_loss
from difflora.layout import LoraLayout, ModuleSpec
from studies.lae_variants import TOP_SHARE, VARIANTS, FlatConvolution, hard_top_loss
from training.settings import LaeTrainingConfig
from training.train_lae import train

LAYOUT = LoraLayout((ModuleSpec("a", 8, 700), ModuleSpec("b", 8, 611)), rank=2, alpha=2.0)
SIZES = LaeConfig(latent_tokens=4, latent_channels=8)


def test_flat_convolution_has_the_same_interface(generator):
    lae = FlatConvolution(LAYOUT, SIZES)
    flat = torch.randn(3, LAYOUT.num_parameters, generator=generator)
    latent = lae.encode(flat)
    assert latent.shape == (3, 4, 8)
    assert lae.decode(latent).shape == flat.shape
    changed = flat.clone()
    changed[:, -1] += 10  # the last number reaches the last token only: convolutions are local
    moved = (lae.encode(changed) - latent).abs().amax(dim=(0, 2))
    assert moved[-1] > 0 and moved[0] == 0


def test_flat_convolution_trains_by_the_same_loop(tmp_path):
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(2, LAYOUT.num_parameters, generator=generator)
    library = torch.randn(20, 2, generator=generator) @ basis
    config = LaeTrainingConfig(num_steps=4, batch_size=4, warmup=2)
    lae, _ = train(library, LAYOUT, SIZES, config, tmp_path, "cpu", FlatConvolution, hard_top_loss)
    assert isinstance(lae, FlatConvolution)
    again, _ = train(library, LAYOUT, SIZES, config, tmp_path, "cpu", FlatConvolution, hard_top_loss)
    for name, tensor in lae.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_hard_loss_by_hand():
    target = torch.tensor([[0.1, -3.0, 0.2, 0.3, 0.4]])  # a fifth, the largest, is -3
    error = torch.tensor([[1.0, 2.0, 0.0, 0.0, 0.0]])
    assert TOP_SHARE == 0.2
    assert hard_top_loss(target + error, target, 0.0, 5.0).item() == pytest.approx((1 + 5 * 4) / (5 + 4))
    assert hard_top_loss(target + error, target, 0.0, 1.0).item() == pytest.approx(
        lae_loss(target + error, target, 0.0, 1.0).item()  # both are the mean squared error
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_changes_something_and_keeps_the_rest(name):
    default, variant = VARIANTS["default"], VARIANTS[name]
    fields = ("lae", "training", "network", "loss", "trained_only")
    changed = [entry for entry in fields if getattr(variant, entry) != getattr(default, entry)]
    two = (
        "trained_2048",
        "flat_convolution",
    )  # a convolution over the flat vector has no linear path, either
    assert len(changed) == (0 if name == "default" else 2 if name in two else 1)
    if name.startswith("latent_"):
        assert variant.latent_numbers == int(name.split("_")[1])
        assert variant.lae.linear_rank == variant.latent_numbers
        sizes = {
            key: getattr(default.lae, key) for key in ("latent_tokens", "latent_channels", "linear_rank")
        }
        assert replace(variant.lae, **sizes) == default.lae

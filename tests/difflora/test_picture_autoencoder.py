import pytest
import torch

pytest.importorskip("diffusers")

from difflora.picture_autoencoder import PatchAutoencoder


def test_all_components_restore_the_picture():
    pictures = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    autoencoder = PatchAutoencoder(latent_channels=48, patch_size=4)  # 3 * 4 * 4: nothing is left out
    autoencoder.fit(pictures)
    latents = autoencoder.encode(pictures).latent_dist.mode()
    assert latents.shape == (64, 48, 4, 4)
    assert torch.allclose(autoencoder.decode(latents).sample, pictures, atol=1e-4)


def test_error_is_what_the_left_out_components_hold():
    mixing = torch.randn(12, 12, generator=torch.Generator().manual_seed(1))
    patches = torch.randn(4096, 12, generator=torch.Generator().manual_seed(2)) @ mixing
    patches = patches - patches.mean()
    pictures = patches.reshape(-1, 3, 2, 2)
    autoencoder = PatchAutoencoder(latent_channels=5, patch_size=2)
    autoencoder.fit(pictures)
    decoded = autoencoder.decode(autoencoder.encode(pictures).latent_dist.mode()).sample
    colour = pictures.mean((0, 2, 3))[:, None, None]
    rows = (pictures - colour).flatten(1)
    expected = torch.linalg.eigvalsh(rows.T @ rows / len(rows))[:-5].sum()  # closed form of PCA
    assert torch.isclose((decoded - pictures).square().sum((1, 2, 3)).mean(), expected, rtol=1e-3)


def test_the_encoder_sees_means_of_pixels():
    pictures = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(4)) * 2 - 1
    halved = torch.nn.functional.avg_pool2d(pictures, 2)
    whole, half = PatchAutoencoder(6, 4, pooling=2), PatchAutoencoder(6, 4)
    whole.fit(pictures)
    half.fit(halved)
    latents = whole.encode(pictures).latent_dist.mode()
    assert torch.allclose(latents, half.encode(halved).latent_dist.mode(), atol=1e-5)
    doubled = half.decode(latents).sample.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(whole.decode(latents).sample, doubled, atol=1e-5)


def test_the_decoder_comes_back_from_its_folder(tmp_path):
    autoencoder = PatchAutoencoder(5, 4, 2, decoder_widths=(12, 8), decoder_blocks=(1, 2))
    latents = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(5))
    linear = autoencoder.decode(latents).sample
    assert linear.shape == (2, 3, 24, 32)
    assert torch.equal(linear, autoencoder.decoder.linear(latents))  # the network starts as nothing
    for parameter in autoencoder.decoder.network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    drawn = autoencoder.decode(latents).sample
    assert (drawn - linear).abs().mean() > 0.01
    autoencoder.save_pretrained(tmp_path)
    loaded = PatchAutoencoder.from_pretrained(tmp_path)
    assert torch.allclose(loaded.decode(latents).sample, drawn, atol=1e-6)
    assert 2 ** (len(loaded.config.block_out_channels) - 1) == 8  # pixels of a latent, as a pipeline asks


@pytest.mark.parametrize(("widths", "blocks"), [((12,), (1,)), ((12, 8), (1,)), ((8, 8, 8), (1, 1, 1))])
def test_widths_that_do_not_lead_to_the_picture_are_refused(widths, blocks):
    with pytest.raises(ValueError, match="do not lead to 8 pixels per latent"):
        PatchAutoencoder(5, 4, 2, decoder_widths=widths, decoder_blocks=blocks)


def test_latents_have_unit_variance():
    pictures = torch.rand(200, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
    autoencoder = PatchAutoencoder(latent_channels=16)
    autoencoder.fit(pictures)
    assert autoencoder.encode(pictures).latent_dist.mode().std().item() == pytest.approx(1.0, abs=0.05)

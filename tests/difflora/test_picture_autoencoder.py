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


def test_latents_have_unit_variance():
    pictures = torch.rand(200, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
    autoencoder = PatchAutoencoder(latent_channels=16)
    autoencoder.fit(pictures)
    assert autoencoder.encode(pictures).latent_dist.mode().std().item() == pytest.approx(1.0, abs=0.05)

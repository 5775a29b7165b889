"""All parts together: statistics, guidance, sampling."""

import pytest
import torch

from difflora.autoencoder import LaeConfig
from difflora.diffusion import DiffusionConfig, draw_noise
from difflora.errors import DiffLoRAError
from difflora.hypernetwork import HypernetworkConfig, LoraHypernetwork
from difflora.layout import LoraLayout, ModuleSpec
from difflora.mixing import MifConfig
from difflora.normalisation import LoraNormalisation
from difflora.transformer import DitConfig

LAYOUT = LoraLayout((ModuleSpec("a", 8, 12), ModuleSpec("b", 8, 10)), rank=2, alpha=2.0)
CONFIG = HypernetworkConfig(
    LaeConfig(latent_tokens=3, latent_channels=4, token_size=8, token_width=4, width=8),
    MifConfig(face_width=16, image_width=6, width=8, heads=2),
    DitConfig(latent_tokens=3, latent_channels=4, condition_width=8, width=16, depth=1, heads=2),
)


def networks(config: HypernetworkConfig = CONFIG) -> LoraHypernetwork:
    torch.manual_seed(0)
    made = LoraHypernetwork(LAYOUT, config)
    for parameter in made.dit.parameters():  # away from the zero start
        torch.nn.init.normal_(parameter, std=0.3)
    return made.train(False)


def photos(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    face, image = (
        torch.randn(batch, 2, 16, generator=generator),
        torch.randn(batch, 2, 6, generator=generator),
    )
    return face, image, torch.ones(batch, 2, dtype=torch.bool)


def test_fitted_latents_have_unit_variance_and_encode_agrees() -> None:
    library = torch.randn(70, LAYOUT.num_parameters) * 0.01 + 3
    made = networks()
    made.set_normalisation(LoraNormalisation.fit(library, LAYOUT))
    latents = made.fit_latents(library)
    torch.testing.assert_close(latents.mean(dim=0), torch.zeros(3, 4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std(dim=0), torch.ones(3, 4), atol=1e-3, rtol=0)
    torch.testing.assert_close(made.encode_loras(library[:5]), latents[:5], atol=1e-4, rtol=1e-3)
    decoded = made.normalisation.denormalise(
        made.lae.decode(made.lae.encode(made.normalisation.normalise(library[:5])))
    )
    torch.testing.assert_close(made.decode_latents(latents[:5]), decoded, atol=1e-4, rtol=1e-3)


def test_guidance_interpolates_between_null_and_condition() -> None:
    made, latent, time = networks(), torch.randn(2, 3, 4), torch.rand(2)
    condition, null = made.condition(*photos(2)), made.null_condition(2)
    told, untold = made.predict_x0(latent, time, condition), made.predict_x0(latent, time, null)
    for scale, expected in ((1.0, told), (0.0, untold), (3.0, untold + 3 * (told - untold))):
        torch.testing.assert_close(made.predict_guided(latent, time, condition, scale), expected)


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_sampling_is_deterministic_in_the_generator(prediction: str) -> None:
    made = networks(
        HypernetworkConfig(CONFIG.lae, CONFIG.mif, CONFIG.dit, DiffusionConfig(prediction=prediction))
    )
    condition = made.condition(*photos(2))

    def draw(seed: int, **settings: float) -> torch.Tensor:
        noise = draw_noise((2, 3, 4), torch.Generator().manual_seed(seed))
        return made.sample(condition, noise, 4, **settings)

    assert torch.equal(draw(0), draw(0))
    assert not torch.allclose(draw(0), draw(1))
    assert torch.equal(draw(0, noise_scale=0.0), draw(1, noise_scale=0.0))


def test_half_precision_gives_about_the_same_lora_in_float32() -> None:
    given = networks()
    given.weight_mean.copy_(torch.linspace(-1, 1, len(given.weight_mean)))
    statistics = given.weight_mean.clone()

    @torch.no_grad()
    def generate() -> torch.Tensor:
        noise = torch.randn(2, *given.latent_mean.shape, generator=torch.Generator().manual_seed(3))
        return given.decode_latents(given.sample(given.condition(*photos(2)), noise, 4, guidance_scale=1.5))

    whole = generate()
    given.to_precision(torch.bfloat16)
    half = generate()
    assert half.dtype == torch.float32 and given.dtype == torch.bfloat16
    assert torch.equal(given.weight_mean, statistics)  # not rounded
    assert 0 < (half - whole).norm() / whole.norm() < 0.05


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DiffLoRAError, match="the LAE makes"):
        HypernetworkConfig(lae=LaeConfig(latent_tokens=4))
    with pytest.raises(DiffLoRAError, match="condition_width"):
        HypernetworkConfig(mif=MifConfig(width=64))

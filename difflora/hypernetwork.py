"""The whole of DiffLoRA's networks: features of a person -> LoRA latent -> flat weights.

The paper's view: a diffusion model as a *hypernetwork* that puts out LoRA weights.

    features -- MIF --> condition -- DiT, diffusion --> latent -- LAE decoder, denormalise --> flat weights

Letters: B identities, N photos, T latent tokens, C latent channels, P parameters of one LoRA.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from . import diffusion
from .autoencoder import LaeConfig, LoraAutoencoder
from .diffusion import DiffusionConfig, Progress
from .errors import DiffLoRAError
from .layout import LoraLayout
from .linear_prior import LinearPrior
from .mixing import Condition, MifConfig, MixedImageFeatures
from .normalisation import ROWS_AT_ONCE, LoraNormalisation, WeightRows
from .transformer import DiffusionTransformer, DitConfig

MIN_LATENT_STD = 1e-3  # a latent number that never varies is left unscaled


@dataclass(frozen=True)
class HypernetworkConfig:
    """Sizes of all parts; saved in the checkpoint.

    Args:
        lae: of the autoencoder.
        mif: of the mixing block.
        dit: of the transformer.
        diffusion: schedule and prediction.
        linear_prior: the transformer corrects a linear guess (`linear_prior`) instead of guessing alone.
    """

    lae: LaeConfig = field(default_factory=LaeConfig)
    mif: MifConfig = field(default_factory=MifConfig)
    dit: DitConfig = field(default_factory=DitConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    linear_prior: bool = False

    def __post_init__(self) -> None:
        """Refuse parts that do not fit each other."""
        latent, expected = (
            (self.dit.latent_tokens, self.dit.latent_channels),
            (
                self.lae.latent_tokens,
                self.lae.latent_channels,
            ),
        )
        if latent != expected:
            raise DiffLoRAError(
                f"the DiT takes latents of {latent} tokens x channels, the LAE makes {expected}"
            )
        if self.dit.condition_width != self.mif.width:
            raise DiffLoRAError(
                f"the DiT's condition_width {self.dit.condition_width} is not MIF's width {self.mif.width}"
            )
        if self.linear_prior and self.diffusion.prediction != "x0":
            raise DiffLoRAError("a linear prior needs the prediction x0: choose it, or train without prior")


class LoraHypernetwork(nn.Module):
    """LAE, MIF and DiT with everything between them: standardisation of latents, normalisation of weights."""

    def __init__(self, layout: LoraLayout, config: HypernetworkConfig) -> None:
        """Build untrained networks; the statistics are identities until they are set."""
        super().__init__()
        self.layout, self.config = layout, config
        self.lae = LoraAutoencoder(layout, config.lae)
        self.mif = MixedImageFeatures(config.mif)
        self.dit = DiffusionTransformer(config.dit)
        shape = (config.lae.latent_tokens, config.lae.latent_channels)
        features = config.mif.face_width + config.mif.image_width
        self.prior = LinearPrior(features, shape) if config.linear_prior else None
        self.register_buffer("latent_mean", torch.zeros(shape))  # (T, C)
        self.register_buffer("latent_std", torch.ones(shape))  # (T, C)
        self.register_buffer("weight_mean", torch.zeros(layout.num_parameters))  # (P,)
        self.register_buffer("weight_rms", torch.ones(len(layout.tensors)))  # (tensors,)
        self.latent_mean: Tensor
        self.latent_std: Tensor
        self.weight_mean: Tensor
        self.weight_rms: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Of LAE, MIF and DiT. Features, latents and flat weights go in and come out in float32."""
        return self.dit.position.dtype

    def to_precision(self, dtype: torch.dtype) -> LoraHypernetwork:
        """Convert LAE, MIF and DiT in place; statistics stay float32. Half of the memory in bfloat16."""
        for part in (self.lae, self.mif, self.dit):
            part.to(dtype)
        return self

    @property
    def normalisation(self) -> LoraNormalisation:
        """Statistics of the library that the networks were trained on."""
        return LoraNormalisation(self.layout, self.weight_mean, self.weight_rms)

    def set_normalisation(self, normalisation: LoraNormalisation) -> None:
        """Copy a library's statistics."""
        self.weight_mean.copy_(normalisation.mean)
        self.weight_rms.copy_(normalisation.rms)

    @torch.no_grad()
    def fit_latents(self, flat_weights: WeightRows) -> Tensor:
        """Measure mean and deviation of every number of the latent, so that diffusion sees unit variance.

        Args:
            flat_weights: (n, P) raw weights of a library, on any device or on disk.

        Returns:
            (n, T, C) standardised latents of the library, on the networks' device.
        """
        latents = torch.cat([self._encode(part) for part in flat_weights.split(ROWS_AT_ONCE)])  # (n, T, C)
        std = latents.std(dim=0)  # (T, C)
        self.latent_mean.copy_(latents.mean(dim=0))
        self.latent_std.copy_(torch.where(std > MIN_LATENT_STD, std, 1.0))
        return (latents - self.latent_mean) / self.latent_std  # (n, T, C)

    def encode_loras(self, flat_weights: Tensor) -> Tensor:
        """Raw flat weights (B, P) -> standardised latents (B, T, C)."""
        return (self._encode(flat_weights) - self.latent_mean) / self.latent_std

    def _encode(self, flat_weights: Tensor) -> Tensor:
        """(B, P) -> (B, T, C), not standardised."""
        normalised = self.normalisation.normalise(flat_weights.to(self.weight_mean))  # (B, P)
        return self.lae.encode(normalised.to(self.dtype)).float()

    def decode_latents(self, latent: Tensor) -> Tensor:
        """Standardised latents (B, T, C) -> raw flat weights (B, P)."""
        latent = latent * self.latent_std + self.latent_mean  # (B, T, C)
        return self.normalisation.denormalise(self.lae.decode(latent.to(self.dtype)).float())

    def condition(self, face: Tensor, image: Tensor, mask: Tensor) -> Condition:
        """MIF and prior: face (B, N, 512), image (B, N, C), mask (B, N) -> condition."""
        mixed = self.mif(face.to(self.dtype), image.to(self.dtype), mask)
        return mixed if self.prior is None else replace(mixed, prior=self.prior(face, image, mask))

    def predict_x0(self, latent: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """The clean latent that the DiT expects: (B, T, C), (B,), condition -> (B, T, C)."""
        alpha, sigma = self.config.diffusion.alpha_sigma(time)  # (B,) each
        output = self.dit(latent.to(self.dtype), time, condition).float()  # (B, T, C)
        if condition.prior is not None:
            guess = condition.prior.posterior(latent, alpha, sigma)  # (B, T, C) twice
            return guess.mean + guess.deviation * output
        return diffusion.to_x0(output, latent, alpha, sigma, self.config.diffusion.prediction)

    def predict_guided(
        self, latent: Tensor, time: Tensor, condition: Condition, guidance_scale: float
    ) -> Tensor:
        """Classifier-free guidance (2207.12598): x_null + guidance_scale (x - x_null).

        Args:
            latent: (B, T, C).
            time: (B,).
            condition: of the B identities.
            guidance_scale: 1 is the plain prediction, 0 ignores the photos.

        Returns:
            (B, T, C).
        """
        if guidance_scale == 1:
            return self.predict_x0(latent, time, condition)
        batch = len(latent)
        null = self.null_condition(batch)
        both = condition.joined(null)
        told, untold = self.predict_x0(latent.repeat(2, 1, 1), time.repeat(2), both).chunk(
            2
        )  # (B, T, C) each
        return untold + guidance_scale * (told - untold)  # (B, T, C)

    def null_condition(self, batch: int) -> Condition:
        """The condition of nobody: B rows without a photo."""
        config, device = self.config.mif, self.latent_mean.device
        face = torch.zeros(batch, 1, config.face_width, device=device)  # (B, 1, 512)
        image = torch.zeros(batch, 1, config.image_width, device=device)  # (B, 1, C)
        return self.condition(face, image, torch.zeros(batch, 1, dtype=torch.bool, device=device))

    @torch.no_grad()
    def sample(
        self,
        condition: Condition,
        noise: Tensor,
        num_steps: int,
        guidance_scale: float = 1.0,
        noise_scale: float = 1.0,
        progress: Progress | None = None,
    ) -> Tensor:
        """Sample standardised latents; see `diffusion.sample`.

        Args:
            condition: of the B identities.
            noise: (B, T, C) from `diffusion.draw_noise`.
            num_steps: network evaluations.
            guidance_scale: see `predict_guided`.
            noise_scale: 1 samples, 0 follows the mean prediction.
            progress: called with (steps done, num_steps).

        Returns:
            (B, T, C).
        """
        return diffusion.sample(
            lambda latent, time: self.predict_guided(latent, time, condition, guidance_scale),
            noise,
            self.config.diffusion.alpha_sigma,
            num_steps,
            noise_scale,
            progress,
        )

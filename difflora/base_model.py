"""A frozen text-to-image base model from a diffusers pipeline folder, as much of it as LoRA work needs.

Letters: B pictures, C latent channels, h x w latent grid, L prompt tokens (with the rows of pooled text, see
`text_features`), W text width.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .errors import CheckpointError
from .pipelines import load_pipeline, networks_of, pooled_text_width
from .text_features import TextEncoder, encode_text, split_text

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
PIXELS_AT_ONCE = 2**22
"""Pictures go through the picture autoencoder in groups of this size: four of 1024 x 1024, all tiny ones."""


DENOISER_FILE = Path("unet") / "diffusion_pytorch_model.safetensors"
SAMPLED = 64


def weights_fingerprint(*networks: nn.Module) -> str:
    """Sixteen hexadecimal digits over names, shapes and a sample of the weights (three digits)."""
    digest = hashlib.sha256()
    for network in networks:
        for key, tensor in sorted(network.state_dict().items()):  # buffers as well: components are some
            digest.update(_print_of(key, tuple(tensor.shape), tensor.flatten()[:SAMPLED]))
    return digest.hexdigest()[:16]


def file_fingerprint(path: Path) -> str:
    """`BaseModel.fingerprint` from the denoiser's file, of which only the sample is read.

    Args:
        path: from `denoiser_file`.
    """
    digest = hashlib.sha256()
    with safe_open(path, framework="pt") as file:
        for key in sorted(file.keys()):
            part = file.get_slice(key)
            shape = tuple(part.get_shape())
            rows = math.ceil(SAMPLED / max(1, math.prod(shape[1:])))
            digest.update(_print_of(key, shape, part[:rows].flatten()[:SAMPLED]))
    return digest.hexdigest()[:16]


def denoiser_file(folder: str | Path) -> Path:
    """The file with the U-Net's weights in a diffusers pipeline folder.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(folder) / DENOISER_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {DENOISER_FILE}: give the folder of a diffusers pipeline saved as .safetensors "
            "(save_pretrained of StableDiffusionPipeline writes it)"
        )
    return path


def _print_of(key: str, shape: tuple[int, ...], sample: Tensor) -> bytes:
    return f"{key}{shape}{[f'{x:.2e}' for x in sample.float().cpu().tolist()]}".encode()


@dataclass(frozen=True)
class BaseModel:
    """Denoiser, text encoders and picture autoencoder of one base model; nothing in it is trained here.

    Args:
        name: of its folder.
        denoiser: the U-Net (networks of diffusers and transformers are `Any`: nn.Module alone has no config).
        text_encoder: the first text encoder.
        tokenizer: of the first text encoder.
        autoencoder: of pictures.
        alphas_cumprod: (timesteps,) noise schedule.
        prediction_type: one of `PREDICTION_TYPES`.
        more_text_encoders: tokenizer and network of every further text encoder.
        pooled_width: width of the pooled text that the denoiser is told, 0 if it is told the words only.
    """

    name: str
    denoiser: Any
    text_encoder: Any
    tokenizer: Any
    autoencoder: Any
    alphas_cumprod: Tensor
    prediction_type: str
    more_text_encoders: tuple[TextEncoder, ...] = ()
    pooled_width: int = 0

    @classmethod
    def load(
        cls, path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> BaseModel:
        """Load the folder of a diffusers pipeline: Stable Diffusion 1, 2 or XL.

        Args:
            path: folder with ``model_index.json``.
            device: where the networks go.
            dtype: of the networks; an autoencoder that overflows in half precision stays in float32.

        Raises:
            CheckpointError: when the folder is no such pipeline, or a part of it is missing or damaged.
        """
        pipeline = load_pipeline(Path(path), dtype)
        return cls.from_pipeline(pipeline, name=Path(path).resolve().name, device=device)

    @classmethod
    def from_pipeline(
        cls, pipeline: DiffusionPipeline, name: str, device: torch.device | str = "cpu"
    ) -> BaseModel:
        """The base model inside a diffusers pipeline object.

        Raises:
            CheckpointError: its denoiser predicts, or has to be told, something unknown.
        """
        parts: Any = pipeline  # diffusers sets the components at run time, unknown to a type checker
        for network in networks_of(pipeline):
            network.to(device).train(False).requires_grad_(False)
        config = parts.scheduler.config
        if config.prediction_type not in PREDICTION_TYPES:
            raise CheckpointError(
                f"base model {name} predicts {config.prediction_type!r}: "
                f"known are {', '.join(PREDICTION_TYPES)}"
            )
        second = getattr(parts, "text_encoder_2", None)
        return cls(
            name,
            parts.unet,
            parts.text_encoder,
            parts.tokenizer,
            parts.vae,
            parts.scheduler.alphas_cumprod.to(device),  # (timesteps,)
            config.prediction_type,
            () if second is None else ((parts.tokenizer_2, second),),
            pooled_text_width(name, parts.unet.config),
        )

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.alphas_cumprod.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the denoiser's parameters."""
        return next(self.denoiser.parameters()).dtype

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits over the names, shapes and a sample of the denoiser's weights."""
        return weights_fingerprint(self.denoiser)

    @property
    def encoders_fingerprint(self) -> str:
        """The same for the encoders of text and pictures: whether encoded data stay valid."""
        more = (network for _, network in self.more_text_encoders)
        return weights_fingerprint(self.text_encoder, *more, self.autoencoder.encoder)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one picture."""
        config = self.denoiser.config
        return config.in_channels, config.sample_size, config.sample_size

    @property
    def picture_px(self) -> int:
        """Side of the pictures that the base model is made for, in pixels."""
        return self.denoiser.config.sample_size * self.pixels_per_latent

    @property
    def pixels_per_latent(self) -> int:
        """Side of what one latent covers; diffusers' own rule: every level of the autoencoder halves once."""
        return 2 ** (len(self.autoencoder.config.block_out_channels) - 1)

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """Prompts -> (B, L, W) text features; too long prompts are cut as everywhere in Stable Diffusion."""
        encoders = ((self.tokenizer, self.text_encoder), *self.more_text_encoders)
        return encode_text(encoders, prompts, self.pooled_width, self.device)  # (B, L, W)

    @torch.no_grad()
    def encode_images(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] -> scaled latents (B, C, h, w)."""
        dtype = next(self.autoencoder.parameters()).dtype
        groups = pictures.split(max(1, PIXELS_AT_ONCE // pictures[0, 0].numel()))
        latents = [
            self.autoencoder.encode(group.to(self.device, dtype)).latent_dist.mode() for group in groups
        ]
        return torch.cat(latents) * self.autoencoder.config.scaling_factor

    @torch.no_grad()
    def decode(self, image_latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) -> pictures (B, 3, H, W), clamped to [-1, 1]."""
        latents = self._unscaled(image_latents)
        pixels = latents[0, 0].numel() * self.pixels_per_latent**2
        groups = latents.split(max(1, PIXELS_AT_ONCE // pixels))
        return torch.cat([self.autoencoder.decode(group).sample.clamp(-1.0, 1.0) for group in groups])

    def sketch(self, image_latents: Tensor) -> Tensor:
        """The same with a gradient and not clamped, for losses; by a faster decoder if there is one."""
        latents = self._unscaled(image_latents)
        fast = getattr(self.autoencoder, "sketch", None)
        return self.autoencoder.decode(latents).sample if fast is None else fast(latents)

    def _unscaled(self, image_latents: Tensor) -> Tensor:
        dtype = next(self.autoencoder.parameters()).dtype
        return image_latents.to(dtype) / self.autoencoder.config.scaling_factor

    def denoise(self, noisy: Tensor, t: Tensor, prompt_embeds: Tensor) -> Tensor:
        """What the denoiser predicts, told everything that its kind wants to know.

        SDXL also takes the pooled text, and sizes and crop of the picture: those of an uncropped one.

        Args:
            noisy: (B, C, h, w) latents at timestep t.
            t: (B,) integer timesteps.
            prompt_embeds: (B, L, W) from `encode_prompts`.

        Returns:
            (B, C, h, w), in the language of `prediction_type`.
        """
        if not self.pooled_width:
            return self.denoiser(noisy, t, encoder_hidden_states=prompt_embeds).sample
        words, pooled = split_text(prompt_embeds, self.pooled_width)  # (B, L', W), (B, Q)
        height, width = (side * self.pixels_per_latent for side in noisy.shape[-2:])
        time_ids = pooled.new_tensor([[height, width, 0, 0, height, width]]).expand(len(noisy), -1)  # (B, 6)
        added = {"text_embeds": pooled, "time_ids": time_ids}
        return self.denoiser(noisy, t, encoder_hidden_states=words, added_cond_kwargs=added).sample

    def _levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alphas_cumprod[t].float()[:, None, None, None]  # (B, 1, 1, 1)
        return alpha.sqrt(), (1.0 - alpha).sqrt()

    def add_noise(self, image_latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise (DDPM, eq. 4), (B, C, h, w) for timesteps t (B,)."""
        signal, sigma = self._levels(t)
        return signal * image_latents + sigma * noise

    def _to_x0(self, output: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        signal, sigma = self._levels(t)
        if self.prediction_type == "sample":
            return output
        if self.prediction_type == "epsilon":
            return (noisy - sigma * output) / signal
        return signal * noisy - sigma * output  # v: Salimans & Ho 2022, app. D

    def predict(self, noisy: Tensor, t: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The denoiser's estimate of the clean latents.

        Args:
            noisy: (B, C, h, w) latents at timestep t.
            t: (B,) integer timesteps.
            prompt_embeds: (B, L, W).

        Returns:
            (B, C, h, w) x_0.
        """
        output = self.denoise(noisy, t, prompt_embeds)  # (B, C, h, w)
        return self._to_x0(output.float(), noisy, t)

    def step(self, noisy: Tensor, clean: Tensor, t: Tensor, earlier: Tensor) -> Tensor:
        """One step of deterministic DDIM (Song et al. 2020, eq. 12 with zero variance).

        Args:
            noisy: (B, C, h, w) latents at timestep t.
            clean: (B, C, h, w) estimate of x_0.
            t: (B,) integer timesteps.
            earlier: (B,) integer timesteps to go to.

        Returns:
            (B, C, h, w) latents there.
        """
        signal, sigma = self._levels(t)
        return self.add_noise(clean, (noisy - signal * clean) / sigma, earlier)

    def denoising(
        self, image_latents: Tensor, prompt_embeds: Tensor, noise: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The base model's own training loss per picture, and the guess of the clean latents it is about.

        Args:
            image_latents: (B, C, h, w) clean latents.
            prompt_embeds: (B, L, W).
            noise: (B, C, h, w) standard normal.
            t: (B,) integer timesteps.

        Returns:
            (B,) mean squared error of what it predicts, and (B, C, h, w) x_0.
        """
        signal, sigma = self._levels(t)
        noisy = self.add_noise(image_latents, noise, t)  # (B, C, h, w)
        output = self.denoise(noisy, t, prompt_embeds).float()  # (B, C, h, w)
        target = {
            "sample": image_latents,
            "epsilon": noise,
            "v_prediction": signal * noise - sigma * image_latents,
        }[self.prediction_type]
        error = (output - target.float()).square().flatten(1).mean(1)  # (B,)
        return error, self._to_x0(output, noisy, t)

    def denoising_loss(
        self, image_latents: Tensor, prompt_embeds: Tensor, noise: Tensor, t: Tensor
    ) -> Tensor:
        """The base model's own training loss per picture, (B,); see `denoising`."""
        return self.denoising(image_latents, prompt_embeds, noise, t)[0]

    @torch.no_grad()
    def sample(
        self,
        prompt_embeds: Tensor,
        noise: Tensor,
        num_steps: int = 16,
        guidance_scale: float = 1.0,
        unconditional: Tensor | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Deterministic DDIM, see `step`.

        Args:
            prompt_embeds: (B, L, W).
            noise: (B, C, h, w) standard normal start.
            num_steps: evaluations of the denoiser.
            guidance_scale: classifier-free guidance; 1 means none and halves the cost.
            unconditional: (1, L, W) features of the empty prompt, needed when ``guidance_scale`` is not 1.
            progress: called as progress(step, num_steps) after every step; may raise to stop.

        Returns:
            (B, C, h, w) image latents.
        """
        if guidance_scale != 1.0 and unconditional is None:
            unconditional = self.encode_prompts([""])  # (1, L, W)
        steps = torch.linspace(len(self.alphas_cumprod) - 1, 0, num_steps + 1).round().long()[:-1]
        x = noise  # (B, C, h, w)
        for i, step in enumerate(steps):
            t = torch.full((x.shape[0],), int(step), device=x.device)  # (B,)
            clean = self.predict(x, t, prompt_embeds)  # (B, C, h, w)
            if guidance_scale != 1.0 and unconditional is not None:
                free = self.predict(x, t, unconditional.expand(x.shape[0], -1, -1))  # (B, C, h, w)
                clean = free + guidance_scale * (clean - free)
            if i + 1 < num_steps:
                x = self.step(x, clean, t, steps[i + 1].to(x.device).expand(x.shape[0]))
            else:
                x = clean
            if progress is not None:
                progress(i + 1, num_steps)
        return x

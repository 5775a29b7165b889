"""Trains the picture decoder of the synthetic world: latents of half-size pictures -> whole pictures.

Called by ``python -m training.train_world``. Encoder and linear decoder keep their weights, so that latents,
and all that was trained on them, stay valid. What the base model draws is softer than any picture's latents:
half of the pictures pass through its denoiser first, so that the decoder learns to draw those as well.

Letters: B pictures, C latent channels, h x w latent grid, L prompt tokens, W text width.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from difflora.base_model import BaseModel
from difflora.errors import CheckpointError
from difflora.files import load_safetensors, save_safetensors
from difflora.picture_autoencoder import PatchAutoencoder
from difflora.synthetic.scenes import STUDIO
from training.common import MetricsWriter, load_state, polite_interruption, progress_bar, save_state, say
from training.world_pipeline import BaseModelConfig, random_pictures

BATCH = 16
RENDERED = 32  # at once
FRESH_EVERY = 8  # steps; rendering is dearer than training, so each picture is used four times
AT_FIRST = 8  # rendered batches before the first step
RING = 4096
NOISE = 0.2  # at most, on latents of unit variance
TIMESTEPS = 400  # of 1,000: below it the denoiser still sees whose picture it is
EDGES = 0.5  # weight of the error of differences between neighbours
FULL_RANGE = 4  # every n-th rendered batch shows poses beyond those of studio portraits
AVERAGE_STEPS = 125
SEED = 10_000_000


def decoder_loss(drawn: Tensor, pictures: Tensor) -> Tensor:
    """Mean absolute error of pixels and, `EDGES` of it, of differences between neighbours; (B, 3, H, W)."""
    error = drawn - pictures  # (B, 3, H, W)
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + EDGES * edges


def psnr(drawn: Tensor, pictures: Tensor) -> float:
    """Peak signal-to-noise ratio of pictures in [-1, 1], dB."""
    return float(-10 * torch.log10((drawn.clamp(-1, 1) - pictures).square().mean() / 4))


class Gallery:
    """Recently rendered pictures, eight bits a colour: each is used a few times."""

    def __init__(self, config: BaseModelConfig, device: str, start: int) -> None:
        """Empty; ``start`` says which pictures come first."""
        self.config, self.device, self.count = config, device, start
        self.pictures: list[tuple[Tensor, str]] = []  # with their prompts

    def render(self) -> None:
        """Replace the oldest pictures."""
        self.count += 1
        jitter = 1.0 if self.count % FULL_RANGE == 0 else STUDIO
        _, scenes, pictures = random_pictures(
            RENDERED,
            SEED + self.count,
            device=self.device,
            px=self.config.picture_px,
            jitter=jitter,
            styled=self.config.styled,
        )
        stored = ((pictures + 1) * 127.5).round().byte()  # (n, 3, H, W)
        self.pictures = [*self.pictures, *zip(stored, scenes.prompts(), strict=True)][-RING:]

    def batch(self, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """Pictures (B, 3, H, W) in [-1, 1] and their prompts."""
        chosen = torch.randint(len(self.pictures), (BATCH,), generator=generator).tolist()
        pictures = torch.stack([self.pictures[i][0] for i in chosen])  # (B, 3, H, W)
        return pictures / 127.5 - 1.0, [self.pictures[i][1] for i in chosen]


@torch.no_grad()
def drawn_latents(base: BaseModel, latents: Tensor, prompts: list[str], generator: torch.Generator) -> Tensor:
    """Latents (B, C, h, w) as a decoder meets them: the first half denoised by the base model, all noisy."""
    half = len(latents) // 2
    t = torch.randint(TIMESTEPS, (half,), generator=generator).to(latents.device)  # (B/2,)
    noise = torch.randn(latents[:half].shape, generator=generator).to(latents.device)  # (B/2, C, h, w)
    embeds = base.encode_prompts(prompts[:half])  # (B/2, L, W)
    clean = base.predict(base.add_noise(latents[:half], noise, t), t, embeds)  # (B/2, C, h, w)
    level = NOISE * torch.rand(len(latents), 1, 1, 1, generator=generator)  # (B, 1, 1, 1)
    noise = level * torch.randn(latents.shape, generator=generator)  # (B, C, h, w)
    return torch.cat([clean, latents[half:]]) + noise.to(latents.device)


def train_picture_decoder(
    out: Path, base_model: Path, config: BaseModelConfig, device: str = "cpu"
) -> dict[str, float]:
    """Train the decoder's network; write the autoencoder into the base model's folder.

    A network of the same sizes that is there already is trained on.

    Args:
        out: run folder; an existing one is continued.
        base_model: trained pipeline folder, whose ``vae`` is replaced at the end.
        config: sizes and number of pictures.
        device: where to train.

    Returns:
        PSNR on people of the validation split, of the linear decoder and of the trained one, dB.
    """
    torch.manual_seed(config.seed + 2)
    base = BaseModel.load(base_model, device)
    linear = base.autoencoder
    autoencoder = PatchAutoencoder(
        config.latent_channels,
        linear.config.patch_size,
        linear.config.pooling,
        config.decoder_widths,
        config.decoder_blocks,
    ).to(device)
    autoencoder.encoder.load_state_dict(linear.encoder.state_dict())
    autoencoder.decoder.linear.load_state_dict(linear.decoder.linear.state_dict())
    trained = linear.decoder.state_dict()
    if {k: v.shape for k, v in trained.items()} == {
        k: v.shape for k, v in autoencoder.decoder.state_dict().items()
    }:
        autoencoder.decoder.load_state_dict(trained)
    autoencoder.requires_grad_(False)
    decoder = autoencoder.decoder
    decoder.network.requires_grad_(True).to(memory_format=torch.channels_last)
    average = copy.deepcopy(decoder.network).requires_grad_(False)
    rate = 1e-3
    optimiser = torch.optim.AdamW(
        decoder.network.parameters(), rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    state_path, step, steps = out / "state.safetensors", 0, math.ceil(config.decoder_pictures / BATCH)
    if state_path.is_file():
        state = load_state(state_path)
        if state["widths"] != list(config.decoder_widths) or state["blocks"] != list(config.decoder_blocks):
            raise CheckpointError(f"{state_path} holds another decoder: use another --out folder")
        decoder.network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
    gallery = Gallery(config, device, step)

    def save() -> None:
        save_state(
            state_path,
            {
                "network": decoder.network.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
                "widths": list(config.decoder_widths),
                "blocks": list(config.decoder_blocks),
                "step": step,
            },
        )

    bar = progress_bar(steps * BATCH, "picture decoder", step * BATCH)
    with polite_interruption() as interrupted, MetricsWriter(out / "metrics.jsonl", step) as metrics:
        while step < steps:
            for _ in range(AT_FIRST if not gallery.pictures else step % FRESH_EVERY == 0):
                gallery.render()
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            pictures, prompts = gallery.batch(generator)  # (B, 3, H, W)
            latents = drawn_latents(base, base.encode_images(pictures), prompts, generator)  # (B, C, h, w)
            loss = decoder_loss(decoder(latents.contiguous(memory_format=torch.channels_last)), pictures)
            loss.backward()
            nn.utils.clip_grad_norm_(decoder.network.parameters(), 1.0)
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / 100) * (1 + math.cos(math.pi * step / steps)) / 2
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            step += 1
            share = max(1 / AVERAGE_STEPS, 1 / step)
            for slow, fast in zip(average.parameters(), decoder.network.parameters(), strict=True):
                slow.lerp_(fast.detach(), share)
            bar.update(BATCH)
            if step % 100 == 0:
                bar.set_postfix(loss=f"{float(loss.detach()):.4f}")
                metrics.write(step * BATCH, loss=float(loss.detach()))
            if step % 500 == 0 or interrupted():
                save()
            if interrupted():
                raise SystemExit(130)
    save()
    decoder.network.load_state_dict(average.state_dict())
    measures = measure(autoencoder, config, device)
    save_autoencoder(autoencoder, base_model / "vae")
    return measures


def save_autoencoder(autoencoder: PatchAutoencoder, folder: Path) -> None:
    """Write the autoencoder; the network in float16, what is linear as exact as it was."""
    autoencoder.to("cpu").save_pretrained(folder)
    path = folder / "diffusion_pytorch_model.safetensors"
    weights, metadata = load_safetensors(path)
    for name in weights:
        if name.startswith("decoder.network."):
            weights[name] = weights[name].half()
    save_safetensors(path, weights, metadata)


@torch.no_grad()
def measure(autoencoder: PatchAutoencoder, config: BaseModelConfig, device: str) -> dict[str, float]:
    """PSNR of linear and whole decoder on 128 pictures of people of the validation split, dB."""
    pictures = random_pictures(128, 4, "validation", device, config.picture_px)[2]
    latents = autoencoder.encode(pictures).latent_dist.mode()  # (B, C, h, w)
    linear, drawn = autoencoder.decoder.linear(latents), autoencoder.decoder(latents)
    measures = {"linear_psnr_db": psnr(linear, pictures), "psnr_db": psnr(drawn, pictures)}
    say(f"picture decoder: {measures['psnr_db']:.1f} dB (linear {measures['linear_psnr_db']:.1f})")
    return measures

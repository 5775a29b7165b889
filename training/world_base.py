"""Trains the synthetic base model: the U-Net, and at first the text encoder with it.

Called by ``python -m training.train_world``. On several cores, one single-thread process each:
``OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 -m training.train_world --stage base_model``.

Letters: B pictures, C latent channels, h x w latent grid, L prompt tokens, W text width.
"""

from __future__ import annotations

import copy
import os
import time
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from difflora.errors import CheckpointError
from difflora.picture_autoencoder import PatchAutoencoder
from difflora.synthetic.captions import sample_captions
from difflora.synthetic.scenes import Scene
from training.common import MetricsWriter, load_state, polite_interruption, progress_bar, save_state
from training.world_pipeline import (
    BaseModelConfig,
    build_autoencoder,
    build_denoiser,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    extend_tokenizer,
    measure_autoencoder,
    random_pictures,
    save_pipeline,
)


class Ring:
    """Latents and captions of recently rendered pictures: rendering is dear, so each is used a few times."""

    def __init__(
        self, config: BaseModelConfig, autoencoder: PatchAutoencoder, device: str, seed: int
    ) -> None:
        """Empty ring; it fills while training goes on."""
        self.config, self.autoencoder, self.device, self.count = (
            config,
            autoencoder.to(device),
            device,
            seed * 10_000_019,
        )
        self.latents: list[Tensor] = []
        self.people: list[tuple[Tensor, Scene]] = []
        self.cursor = 0

    def batch(self, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """(B, C, h, w) latents and B captions, now and then after new pictures were put into the ring."""
        if self.latents and torch.rand((), generator=generator) > self.config.fresh:
            return self._draw(generator)
        self.count += 1
        fresh = self.config.batch_size
        traits, scene, pictures = random_pictures(
            fresh, self.count, device=self.device, px=self.config.picture_px, styled=self.config.styled
        )
        with torch.no_grad():
            latents = self.autoencoder.encode(pictures).latent_dist.mode()  # (fresh, C, h, w)
        for i in range(fresh):
            row = (latents[i], (traits[i : i + 1], scene[i : i + 1]))
            if len(self.latents) < self.config.ring:
                self.latents.append(row[0])
                self.people.append(row[1])
            else:
                self.latents[self.cursor], self.people[self.cursor] = row
                self.cursor = (self.cursor + 1) % self.config.ring
        return self._draw(generator)

    def _draw(self, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        chosen = torch.randint(len(self.latents), (self.config.batch_size,), generator=generator).tolist()
        captions = []
        for i in chosen:
            captions += sample_captions(
                *self.people[i], seed=int(torch.randint(2**31, (1,), generator=generator))
            )
        return torch.stack([self.latents[i] for i in chosen]), captions


def rate_at(done: int, config: BaseModelConfig) -> float:
    """Warm-up, plateau, then linear to zero over the last ``decay`` of training."""
    warm = min((done + config.batch_size) / 20_000, 1.0)
    return config.learning_rate * warm * min((config.pictures - done) / (config.decay * config.pictures), 1.0)


def train_base_model(
    out: Path,
    config: BaseModelConfig,
    device: str = "cpu",
    save_every: float = 60.0,
    init: Path | None = None,
) -> dict[str, float]:
    """Train the U-Net (and, at first, the text encoder with it) to predict clean latents.

    Args:
        out: run folder: ``state.safetensors`` every ``save_every`` seconds, metrics, ``base_model/``.
        config: see ``BaseModelConfig``.
        device: where to train.
        save_every: seconds between saves.
        init: trained pipeline folder to start from; its latents and its words stay what they are.

    Returns:
        Measures of the autoencoder.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    torch.manual_seed(config.seed)
    if init is None:
        autoencoder = build_autoencoder(config)
        tokenizer = build_tokenizer(out / "tokenizer")
    else:
        autoencoder = PatchAutoencoder.from_pretrained(init / "vae").requires_grad_(False)
        tokenizer = extend_tokenizer(init / "tokenizer", out / "tokenizer")
    measures = measure_autoencoder(autoencoder, config)
    denoiser, text_encoder = build_denoiser(config), build_text_encoder(config, tokenizer)
    if init is not None:
        denoiser.load_state_dict(UNet2DConditionModel.from_pretrained(init / "unet").state_dict())
        trained = CLIPTextModel.from_pretrained(init / "text_encoder")
        trained.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        text_encoder.load_state_dict(trained.state_dict())
    denoiser, text_encoder = denoiser.to(device), text_encoder.to(device)
    averages = [
        copy.deepcopy(network).train(False).requires_grad_(False) for network in (denoiser, text_encoder)
    ]
    parameters = [*denoiser.parameters(), *text_encoder.parameters()]
    groups = [
        {"params": list(denoiser.parameters()), "share": 1.0},
        {"params": list(text_encoder.parameters()), "share": config.text_rate},
    ]
    optimiser = torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    state_path, done = out / "state.safetensors", 0
    networks = {
        "denoiser": denoiser,
        "text_encoder": text_encoder,
        "denoiser_ema": averages[0],
        "text_ema": averages[1],
    }
    if state_path.is_file():
        state = load_state(state_path)
        if state["channels"] != list(config.channels):
            raise CheckpointError(
                f"{state_path} holds another U-Net {state['channels']}: use another --out folder"
            )
        for name, network in networks.items():
            network.load_state_dict(state[name])
        optimiser.load_state_dict(state["optimiser"])
        done = state["done"]
    alphas = build_scheduler().alphas_cumprod.to(device)
    generator = torch.Generator().manual_seed(config.seed * 1000 + rank + done * 7)
    ring = Ring(config, autoencoder, device, seed=1 + rank + 2 * (done // config.batch_size))

    def save() -> None:
        if rank == 0:
            save_state(
                state_path,
                {
                    **{k: n.state_dict() for k, n in networks.items()},
                    "channels": list(config.channels),
                    "optimiser": optimiser.state_dict(),
                    "done": done,
                },
            )
            save_pipeline(out / "base_model", averages[0], averages[1], tokenizer, autoencoder)

    text_final = False
    saved, began, first, losses = time.monotonic(), time.monotonic(), done, []
    bar = progress_bar(config.pictures, "base model", done) if rank == 0 else None
    with polite_interruption() as interrupted, MetricsWriter(out / f"metrics-{rank}.jsonl", done) as metrics:
        while done < config.pictures:
            latents, captions = ring.batch(generator)
            tokens = tokenizer(
                captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
            ).input_ids
            train_text = done < config.text_pictures
            with torch.set_grad_enabled(train_text):
                prompt_embeds = text_encoder(tokens.to(device)).last_hidden_state  # (B, L, W)
            t = torch.randint(1000, (len(latents),), generator=generator).to(device)  # (B,)
            noise = torch.randn(latents.shape, generator=generator).to(device)  # (B, C, h, w)
            alpha = alphas[t][:, None, None, None]  # (B, 1, 1, 1)
            noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise  # (B, C, h, w)
            with torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda")):
                clean = denoiser(noisy, t, encoder_hidden_states=prompt_embeds).sample  # (B, C, h, w)
            # x0 errors grow with noise: a mild lift of the cleaner end, where faces get their features
            weight = (alpha / (1 - alpha)).clamp(0.05, 10.0).pow(0.3).flatten()  # (B,)
            loss = (weight * (clean.float() - latents).square().flatten(1).mean(1)).mean()
            loss.backward()
            if world > 1:
                _average_gradients(parameters if train_text else list(denoiser.parameters()), world)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for group in optimiser.param_groups:
                group["lr"] = group["share"] * rate_at(done, config)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            step = config.batch_size * world
            done += step
            if not train_text and not text_final:  # nothing is left to average, and others may build on it
                averages[1].load_state_dict(text_encoder.state_dict())
                text_final = True
            with torch.no_grad():
                decay = min(1.0, step / min(config.ema_pictures, 0.1 * done + step))
                for average, network in zip(averages, (denoiser, text_encoder), strict=True):
                    for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
                        slow.lerp_(fast, decay)
            losses.append(float(loss.detach()))
            if rank == 0 and len(losses) == 100:
                speed = (done - first) / (time.monotonic() - began)
                metrics.write(done, loss=sum(losses) / 100, pictures_per_second=speed)
                bar.set_postfix(loss=f"{sum(losses) / 100:.4f}", per_s=f"{speed:.0f}")
                losses.clear()
            if bar is not None:
                bar.update(step)
            if time.monotonic() - saved > save_every and rank == 0:
                save()
                saved = time.monotonic()
            if _anyone(interrupted(), world):
                save()
                raise SystemExit(130)
    save()
    return measures


def _average_gradients(parameters: list[nn.Parameter], world: int) -> None:
    """Mean of the gradients over all processes, in one message."""
    present = [p for p in parameters if p.grad is not None]
    flat = torch.cat([p.grad.flatten() for p in present])
    torch.distributed.all_reduce(flat)
    for p, part in zip(present, flat.split([p.numel() for p in present]), strict=True):
        p.grad.copy_(part.view_as(p) / world)


def _anyone(flag: bool, world: int) -> bool:
    if world == 1:
        return flag
    vote = torch.tensor([float(flag)])
    torch.distributed.all_reduce(vote)
    return bool(vote > 0)

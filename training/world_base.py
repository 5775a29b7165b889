"""Trains the synthetic base model: picture autoencoder, tokenizer, U-Net with text encoder, image encoder.

Called by ``python -m training.train_world``. On several cores, one single-thread process each:
``OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 -m training.train_world --stage base_model``.

Letters: B pictures, C latent channels, h x w latent grid, L prompt tokens, W text width.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from difflora.base_model import BaseModel
from difflora.errors import CheckpointError
from difflora.files import atomic_save
from difflora.synthetic.captions import sample_captions, vocabulary
from difflora.synthetic.people import NUM_TRAITS, sample_people
from difflora.picture_autoencoder import PatchAutoencoder
from difflora.synthetic.renderer import render
from difflora.synthetic.scenes import sample_scenes

from .common import MetricsWriter, load_state, polite_interruption, progress_bar, save_state, say


@dataclass(frozen=True)
class BaseModelConfig:
    """Sizes and training of the base model; pictures count what is trained on, not what is rendered."""

    picture_px: int = 64
    latent_channels: int = 48
    channels: tuple[int, ...] = (64, 128)
    text_width: int = 96
    text_layers: int = 2
    batch_size: int = 32
    learning_rate: float = 1.2e-3
    pictures: int = 1_500_000
    text_pictures: int = 60_000         # then the text encoder is frozen, and steps get cheaper
    decay: float = 0.25                 # share of training in which the rate falls to zero
    ring: int = 32_768                  # rendered pictures kept; every step replaces a part of them
    fresh: float = 0.20                 # share of the steps that render a new batch
    ema_pictures: int = 40_000          # time constant of the weight average
    clip_pictures: int = 60_000
    seed: int = 1


PRESETS = {
    "cpu": BaseModelConfig(),
    "gpu": BaseModelConfig(channels=(128, 256), batch_size=512, pictures=6_000_000, text_pictures=2_000_000,
                           learning_rate=1e-3, ring=131_072, ema_pictures=100_000, clip_pictures=600_000),
}


# --- picture autoencoder and tokenizer ----------------------------------------------------------------------


def random_pictures(count: int, seed: int, split: str = "train", device: str = "cpu", px: int = 64):
    """Everybody different, everybody in another scene: traits, scene and pictures (B, 3, H, W) in [-1, 1]."""
    people = torch.Generator().manual_seed(seed)
    if split == "train":
        traits = torch.rand(count, NUM_TRAITS, generator=people) * 2 - 1                # (B, I)
    else:
        traits = sample_people(split, 0, count)
    scene = sample_scenes(count, seed)
    pictures = render(traits.to(device), scene.to(device), px).pictures * 2 - 1         # (B, 3, H, W)
    return traits, scene, pictures


def build_autoencoder(config: BaseModelConfig) -> tuple[PatchAutoencoder, dict[str, float]]:
    """Fit the patch PCA and measure it on people of the validation split."""
    autoencoder = PatchAutoencoder(latent_channels=config.latent_channels)
    autoencoder.fit(random_pictures(1024, seed=3, px=config.picture_px)[2])
    pictures = random_pictures(256, seed=4, split="validation", px=config.picture_px)[2]
    with torch.no_grad():
        latents = autoencoder.encode(pictures).latent_dist.mode()                       # (B, C, h, w)
        error = (autoencoder.decode(latents).sample.clamp(-1, 1) - pictures).square().mean()
    return autoencoder, {"psnr_db": float(-10 * torch.log10(error / 4)), "latent_sd": float(latents.std())}


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Byte-pair vocabulary in CLIP's format, in which every word of a caption is one token."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(vocabulary() * 50, trainers.BpeTrainer(
        vocab_size=4096, show_progress=False, initial_alphabet=alphabet, end_of_word_suffix="</w>",
        limit_alphabet=len(alphabet)))
    trained = json.loads(bpe.to_str())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in trained["merges"]]
    symbols = [*alphabet, *(letter + "</w>" for letter in alphabet), *(merge.replace(" ", "") for merge in merges),
               "<|startoftext|>", "<|endoftext|>"]
    vocab = {symbol: number for number, symbol in enumerate(dict.fromkeys(symbols))}
    folder.mkdir(parents=True, exist_ok=True)
    atomic_save(folder / "vocab.json", lambda p: p.write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8"))
    atomic_save(folder / "merges.txt",
                lambda p: p.write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8"))
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77, pad_token="<|endoftext|>")


# --- networks -----------------------------------------------------------------------------------------------


def build_text_encoder(config: BaseModelConfig, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A small CLIP text tower; 77 positions as everywhere."""
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=config.text_width, intermediate_size=4 * config.text_width,
        num_hidden_layers=config.text_layers, num_attention_heads=4, max_position_embeddings=77, hidden_act="quick_gelu",
        projection_dim=config.text_width, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id))


def build_denoiser(config: BaseModelConfig) -> UNet2DConditionModel:
    """A small U-Net with Stable Diffusion's module names, cross-attention at every resolution."""
    count = len(config.channels)
    return UNet2DConditionModel(
        sample_size=config.picture_px // 8, in_channels=config.latent_channels, out_channels=config.latent_channels,
        block_out_channels=config.channels, layers_per_block=1, down_block_types=("CrossAttnDownBlock2D",) * count,
        up_block_types=("CrossAttnUpBlock2D",) * count, cross_attention_dim=config.text_width, attention_head_dim=4,
        norm_num_groups=32)


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule; the network predicts x0, which gave the cleaner pictures at this size."""
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                         set_alpha_to_one=False, steps_offset=1, prediction_type="sample", timestep_spacing="leading")


def save_pipeline(folder: Path, denoiser: nn.Module, text_encoder: nn.Module, tokenizer: CLIPTokenizer,
                  autoencoder: PatchAutoencoder, dtype: torch.dtype = torch.float16) -> None:
    """Write the diffusers pipeline folder, weights in ``dtype``."""
    pipeline = StableDiffusionPipeline(
        vae=copy.deepcopy(autoencoder), text_encoder=copy.deepcopy(text_encoder).to(dtype), tokenizer=tokenizer,
        unet=copy.deepcopy(denoiser).to(dtype), scheduler=build_scheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False)
    pipeline.save_pretrained(folder, safe_serialization=True)


def install(source: Path, destination: Path) -> None:
    """Copy a finished folder into the package, whole or not at all."""
    fresh, old = destination.with_name(destination.name + ".new"), destination.with_name(destination.name + ".old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copytree(source, fresh)
    if destination.exists():
        destination.rename(old)
    fresh.rename(destination)
    shutil.rmtree(old, ignore_errors=True)


# --- training data ------------------------------------------------------------------------------------------


class Ring:
    """Latents and captions of recently rendered pictures: rendering costs a third of a step, so each is used a few times."""

    def __init__(self, config: BaseModelConfig, autoencoder: PatchAutoencoder, device: str, seed: int) -> None:
        """Empty ring; it fills while training goes on."""
        self.config, self.autoencoder, self.device, self.count = config, autoencoder.to(device), device, seed * 10_000_019
        self.latents: list[Tensor] = []
        self.people: list[tuple[Tensor, object]] = []
        self.cursor = 0

    def batch(self, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """(B, C, h, w) latents and B captions; now and then after a batch of new pictures was put into the ring."""
        if self.latents and torch.rand((), generator=generator) > self.config.fresh:
            return self._draw(generator)
        self.count += 1
        fresh = self.config.batch_size
        traits, scene, pictures = random_pictures(fresh, self.count, device=self.device, px=self.config.picture_px)
        with torch.no_grad():
            latents = self.autoencoder.encode(pictures).latent_dist.mode()              # (fresh, C, h, w)
        for i in range(fresh):
            row = (latents[i], (traits[i:i + 1], scene[i:i + 1]))
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
            captions += sample_captions(*self.people[i], seed=int(torch.randint(2 ** 31, (1,), generator=generator)))
        return torch.stack([self.latents[i] for i in chosen]), captions


# --- base model ---------------------------------------------------------------------------------------------


def rate_at(done: int, config: BaseModelConfig) -> float:
    """Warm-up, plateau, then linear to zero over the last ``decay`` of training."""
    warm = min((done + config.batch_size) / 20_000, 1.0)
    return config.learning_rate * warm * min((config.pictures - done) / (config.decay * config.pictures), 1.0)


def train_base_model(out: Path, config: BaseModelConfig, device: str = "cpu", save_every: float = 60.0) -> dict[str, float]:
    """Train the U-Net (and, at first, the text encoder with it) to predict clean latents.

    Args:
        out: run folder: ``state.safetensors`` every ``save_every`` seconds, ``metrics.jsonl``, ``base_model/``.
        config: see ``BaseModelConfig``.
        device: where to train.
        save_every: seconds between saves.

    Returns:
        Measures: the autoencoder's and the last validation loss.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    torch.manual_seed(config.seed)
    autoencoder, measures = build_autoencoder(config)
    tokenizer = build_tokenizer(out / "tokenizer")
    denoiser, text_encoder = build_denoiser(config).to(device), build_text_encoder(config, tokenizer).to(device)
    averages = [copy.deepcopy(network).eval().requires_grad_(False) for network in (denoiser, text_encoder)]
    parameters = [*denoiser.parameters(), *text_encoder.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    state_path, done = out / "state.safetensors", 0
    networks = {"denoiser": denoiser, "text_encoder": text_encoder, "denoiser_ema": averages[0], "text_ema": averages[1]}
    if state_path.is_file():
        state = load_state(state_path)
        if state["channels"] != list(config.channels):
            raise CheckpointError(f"{state_path} holds another U-Net {state['channels']}: use another --out folder")
        for name, network in networks.items():
            network.load_state_dict(state[name])
        optimiser.load_state_dict(state["optimiser"])
        done = state["done"]
    alphas = build_scheduler().alphas_cumprod.to(device)
    generator = torch.Generator().manual_seed(config.seed * 1000 + rank + done * 7)
    ring = Ring(config, autoencoder, device, seed=1 + rank + 2 * (done // config.batch_size))

    def save() -> None:
        if rank == 0:
            save_state(state_path, {**{k: n.state_dict() for k, n in networks.items()}, "channels": list(config.channels),
                                    "optimiser": optimiser.state_dict(), "done": done})
            save_pipeline(out / "base_model", averages[0], averages[1], tokenizer, autoencoder)

    saved, began, first, losses = time.monotonic(), time.monotonic(), done, []
    bar = progress_bar(config.pictures, "base model", done) if rank == 0 else None
    with polite_interruption() as interrupted, MetricsWriter(out / f"metrics-{rank}.jsonl", done) as metrics:
        while done < config.pictures:
            latents, captions = ring.batch(generator)
            tokens = tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
            train_text = done < config.text_pictures
            with torch.set_grad_enabled(train_text):
                prompt_embeds = text_encoder(tokens.to(device)).last_hidden_state       # (B, L, W)
            t = torch.randint(1000, (len(latents),), generator=generator).to(device)   # (B,)
            noise = torch.randn(latents.shape, generator=generator).to(device)          # (B, C, h, w)
            alpha = alphas[t][:, None, None, None]                                      # (B, 1, 1, 1)
            noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise                 # (B, C, h, w)
            with torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda")):
                clean = denoiser(noisy, t, encoder_hidden_states=prompt_embeds).sample  # (B, C, h, w)
            # x0 errors grow with noise: a mild lift of the cleaner end, where faces get their features
            weight = (alpha / (1 - alpha)).clamp(0.05, 10.0).pow(0.3).flatten()         # (B,)
            loss = (weight * (clean.float() - latents).square().flatten(1).mean(1)).mean()
            loss.backward()
            if world > 1:
                _average_gradients(parameters if train_text else list(denoiser.parameters()), world)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for group in optimiser.param_groups:
                group["lr"] = rate_at(done, config)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            step = config.batch_size * world
            done += step
            with torch.no_grad():
                decay = min(1.0, step / min(config.ema_pictures, 0.1 * done + step))
                for average, network in zip(averages, (denoiser, text_encoder), strict=True):
                    for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
                        slow.lerp_(fast, decay)
            losses.append(float(loss))
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


# --- image encoder ------------------------------------------------------------------------------------------


def train_image_encoder(out: Path, base_model: Path, config: BaseModelConfig, device: str = "cpu") -> dict[str, float]:
    """Train a CLIP vision tower with the base model's text tower on pictures and captions (Radford et al. 2021).

    The text tower keeps its weights (the base model needs them); its projection is trained.

    Returns:
        Share of 128 unseen pictures whose own caption scores highest.
    """
    base = BaseModel.load(base_model, device)
    torch.manual_seed(config.seed + 1)
    vision = CLIPVisionModelWithProjection(CLIPVisionConfig(
        hidden_size=128, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4, image_size=64, patch_size=8,
        projection_dim=96, hidden_act="quick_gelu")).to(device)
    project = nn.Linear(config.text_width, 96, bias=False).to(device)
    scale = nn.Parameter(torch.tensor(2.7, device=device))
    parameters = [*vision.parameters(), *project.parameters(), scale]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05, fused=True)
    state_path, batch, done = out / "state.safetensors", 64, 0
    if state_path.is_file():
        state = load_state(state_path)
        vision.load_state_dict(state["vision"])
        project.load_state_dict(state["project"])
        scale.data.copy_(state["scale"])
        optimiser.load_state_dict(state["optimiser"])
        done = state["done"]

    def logits(seed: int, split: str = "train", count: int = batch) -> Tensor:
        traits, scene, pictures = random_pictures(count, seed, split, device)
        captions = [c or "a photo" for c in sample_captions(traits, scene, seed)]
        tokens = base.tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            text = base.text_encoder(tokens.to(device)).pooler_output                   # (B, W)
        text = nn.functional.normalize(project(text), dim=-1)                           # (B, 96)
        image = nn.functional.normalize(vision(pictures).image_embeds, dim=-1)          # (B, 96)
        return scale.exp() * image @ text.T                                             # (B, B)

    def save() -> None:
        save_state(state_path, {"vision": vision.state_dict(), "project": project.state_dict(), "scale": scale.data,
                                "optimiser": optimiser.state_dict(), "done": done})

    bar = progress_bar(config.clip_pictures, "image encoder", done)
    with polite_interruption() as interrupted:
        while done < config.clip_pictures:
            rate = 1e-3 * min(1.0, (done + batch) / 4000, 1.02 - done / config.clip_pictures)
            for group in optimiser.param_groups:
                group["lr"] = rate
            scores, target = logits(5_000_000 + done), torch.arange(batch, device=device)
            loss = (nn.functional.cross_entropy(scores, target) + nn.functional.cross_entropy(scores.T, target)) / 2
            loss.backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            done += batch
            bar.update(batch)
            bar.set_postfix(loss=f"{float(loss):.3f}")
            if done % (batch * 100) == 0 or interrupted():
                save()
            if interrupted():
                raise SystemExit(130)
    save()
    with torch.no_grad():
        scores = logits(77, "validation", 128)
    hits = float((scores.argmax(1) == torch.arange(128, device=device)).float().mean())
    folder = out / "image_encoder"
    vision.half().save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, image_mean=[0.5] * 3,
                       image_std=[0.5] * 3).save_pretrained(folder)
    say(f"image encoder: {hits:.2f} of unseen pictures find their caption among 128")
    return {"retrieval_top1_of_128": hits}

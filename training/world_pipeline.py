"""The synthetic base model before training: sizes, picture autoencoder, tokenizer, networks, folder.

Letters: B pictures, C latent channels, h x w latent grid, I identity traits.
"""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from difflora.files import atomic_save, load_safetensors, save_safetensors
from difflora.picture_autoencoder import PatchAutoencoder
from difflora.synthetic.captions import vocabulary
from difflora.synthetic.people import NUM_TRAITS, sample_people
from difflora.synthetic.renderer import render
from difflora.synthetic.scenes import STUDIO, Scene, sample_scenes

PATCH_PX = 8
"""Side of the encoder's patches, in pixels that it sees."""


@dataclass(frozen=True)
class BaseModelConfig:
    """Sizes and training of the base model; pictures count what is trained on, not what is rendered."""

    picture_px: int = 128
    pooling: int = 2  # the encoder sees half of the size
    latent_channels: int = 24
    channels: tuple[int, ...] = (64, 128)
    text_width: int = 96
    text_layers: int = 2
    batch_size: int = 32
    learning_rate: float = 1.2e-3
    text_rate: float = 0.1  # of the learning rate; at all of it the text encoder forgot most words (LOG.md)
    pictures: int = 1_500_000
    text_pictures: int = 60_000  # then the text encoder is frozen, and steps get cheaper
    decay: float = 0.25  # share of training in which the rate falls to zero
    ring: int = 32_768  # rendered pictures kept; every step replaces a part of them
    fresh: float = 0.20  # share of the steps that render a new batch
    styled: float = 0.3  # share of pictures that are no colour photos
    ema_pictures: int = 40_000  # time constant of the weight average
    clip_pictures: int = 40_000
    decoder_widths: tuple[int, ...] = (192, 96, 64)  # of the picture decoder, see `PictureDecoder`
    decoder_blocks: tuple[int, ...] = (3, 2, 2)
    decoder_pictures: int = 70_000
    seed: int = 1

    @property
    def pixels_per_latent(self) -> int:
        """Picture pixels that a latent covers, a side."""
        return PATCH_PX * self.pooling


PRESETS = {
    "cpu": BaseModelConfig(),
    "cpu-continued": BaseModelConfig(  # with --init
        learning_rate=8e-4, pictures=450_000, decay=0.6, decoder_pictures=30_000
    ),
    "gpu": BaseModelConfig(
        channels=(128, 256),
        batch_size=512,
        pictures=6_000_000,
        text_pictures=2_000_000,
        learning_rate=1e-3,
        ring=131_072,
        ema_pictures=100_000,
        clip_pictures=600_000,
    ),
}


def random_pictures(
    count: int,
    seed: int,
    split: str = "train",
    device: str = "cpu",
    px: int = 64,
    jitter: float = STUDIO,
    styled: float = 0.0,
) -> tuple[Tensor, Scene, Tensor]:
    """Everybody different, everybody in another scene: traits, scene and pictures (B, 3, H, W) in [-1, 1]."""
    people = torch.Generator().manual_seed(seed)
    if split == "train":
        traits = torch.rand(count, NUM_TRAITS, generator=people) * 2 - 1  # (B, I)
    else:
        traits = sample_people(split, 0, count)
    scene = sample_scenes(count, seed, jitter, styled)
    pictures = render(traits.to(device), scene.to(device), px).pictures * 2 - 1  # (B, 3, H, W)
    return traits, scene, pictures


def build_autoencoder(config: BaseModelConfig) -> PatchAutoencoder:
    """Fit the patch PCA, on colour photos: they need the most channels."""
    autoencoder = PatchAutoencoder(config.latent_channels, PATCH_PX, config.pooling)
    autoencoder.fit(random_pictures(1024, seed=3, px=config.picture_px, jitter=1.0)[2])
    return autoencoder


def measure_autoencoder(autoencoder: PatchAutoencoder, config: BaseModelConfig) -> dict[str, float]:
    """PSNR on people of the validation split, dB, and the latents' standard deviation."""
    pictures = random_pictures(256, seed=4, split="validation", px=config.picture_px)[2]
    with torch.no_grad():
        latents = autoencoder.encode(pictures).latent_dist.mode()  # (B, C, h, w)
        error = (autoencoder.decode(latents).sample.clamp(-1, 1) - pictures).square().mean()
    return {"psnr_db": float(-10 * torch.log10(error / 4)), "latent_sd": float(latents.std())}


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Byte-pair vocabulary in CLIP's format, in which every word of a caption is one token.

    A folder that holds one is read: pairs that are equally frequent are merged in any order, so that another
    run would number tokens differently from what the text encoder has learned.
    """
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return CLIPTokenizer.from_pretrained(folder, model_max_length=77, pad_token="<|endoftext|>")
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", "removed"),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        vocabulary() * 50,
        trainers.BpeTrainer(
            vocab_size=4096,
            show_progress=False,
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            limit_alphabet=len(alphabet),
        ),
    )
    trained = json.loads(bpe.to_str())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in trained["merges"]]
    symbols = [
        *alphabet,
        *(letter + "</w>" for letter in alphabet),
        *(merge.replace(" ", "") for merge in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocab = {symbol: number for number, symbol in enumerate(dict.fromkeys(symbols))}
    _write_tokenizer(folder, vocab, merges)
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77, pad_token="<|endoftext|>")


def extend_tokenizer(source: Path, folder: Path) -> CLIPTokenizer:
    """A trained tokenizer that also knows today's vocabulary: its own tokens keep their numbers.

    Args:
        source: tokenizer folder of a trained pipeline.
        folder: where the extended one goes; read when it is already there.
    """
    if not (folder / "vocab.json").is_file():
        tokenizer = CLIPTokenizer.from_pretrained(source)
        words = sorted({word for phrase in vocabulary() for word in phrase.replace(",", " ").split()})
        vocab, merges = tokenizer.get_vocab(), (source / "merges.txt").read_text(encoding="utf-8").split("\n")
        merges = [merge for merge in merges if merge and not merge.startswith("#version")]
        for word in words:
            pieces = tokenizer.tokenize(word)
            while len(pieces) > 1:  # from left to right, as the merges will be applied
                merges.append(f"{pieces[0]} {pieces[1]}")
                pieces = [pieces[0] + pieces[1], *pieces[2:]]
                vocab.setdefault(pieces[0], len(vocab))
        _write_tokenizer(folder, vocab, merges)
    return build_tokenizer(folder)


def _write_tokenizer(folder: Path, vocab: dict[str, int], merges: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    atomic_save(
        folder / "merges.txt",
        lambda p: p.write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8"),
    )
    atomic_save(
        folder / "vocab.json", lambda p: p.write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    )


def build_text_encoder(config: BaseModelConfig, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A small CLIP text tower; 77 positions as everywhere."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.text_width,
            intermediate_size=4 * config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=4,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            projection_dim=config.text_width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_denoiser(config: BaseModelConfig) -> UNet2DConditionModel:
    """A small U-Net with Stable Diffusion's module names, cross-attention at every resolution."""
    count = len(config.channels)
    return UNet2DConditionModel(
        sample_size=config.picture_px // config.pixels_per_latent,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        block_out_channels=config.channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * count,
        up_block_types=("CrossAttnUpBlock2D",) * count,
        cross_attention_dim=config.text_width,
        attention_head_dim=4,
        norm_num_groups=32,
    )


def build_scheduler(prediction_type: str = "sample") -> DDIMScheduler:
    """Stable Diffusion's noise schedule; our network predicts x0: cleaner pictures at this size."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
        timestep_spacing="leading",
    )


def save_pipeline(
    folder: Path,
    denoiser: nn.Module,
    text_encoder: nn.Module,
    tokenizer: CLIPTokenizer,
    autoencoder: PatchAutoencoder,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write the diffusers pipeline folder, weights in ``dtype``."""
    tokenizer.backend_tokenizer.no_padding()  # what the last call asked for is not to be kept
    tokenizer.backend_tokenizer.no_truncation()
    pipeline = StableDiffusionPipeline(
        vae=copy.deepcopy(autoencoder),
        text_encoder=copy.deepcopy(text_encoder).to(dtype),
        tokenizer=tokenizer,
        unet=copy.deepcopy(denoiser).to(dtype),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    serve_older_transformers(folder)


def serve_older_transformers(folder: Path) -> None:
    """Make a pipeline folder that transformers 5 wrote readable by transformers 4 as well.

    Version 4 reads a CLIP tokenizer from ``vocab.json`` and ``merges.txt`` only. Without the ``text_model.``
    prefix it finds none of the text encoder's weights and, with only a warning, starts from random ones.

    Args:
        folder: a pipeline folder; a second call changes nothing.
    """
    model = json.loads((folder / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    for name, text in (
        ("vocab.json", json.dumps(model["vocab"], ensure_ascii=False)),
        ("merges.txt", "\n".join(["#version: 0.2", *merges, ""])),
    ):
        atomic_save(
            folder / "tokenizer" / name, lambda path, text=text: path.write_text(text, encoding="utf-8")
        )
    path = folder / "text_encoder" / "model.safetensors"
    weights, metadata = load_safetensors(path)
    prefix = "text_model."
    save_safetensors(path, {prefix + name.removeprefix(prefix): w for name, w in weights.items()}, metadata)


def install(source: Path, destination: Path) -> None:
    """Copy a finished folder into the package, whole or not at all."""
    fresh, old = (
        destination.with_name(destination.name + ".new"),
        destination.with_name(destination.name + ".old"),
    )
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copytree(source, fresh)
    if destination.exists():
        destination.rename(old)
    fresh.rename(destination)
    shutil.rmtree(old, ignore_errors=True)

"""A base model with random weights, laid out like the synthetic world's: a genuine diffusers folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

LATENT_CHANNELS, PATCH, TEXT_WIDTH = 32, 8, 96


def make_pipeline_folder(folder: Path, channels: tuple[int, int] = (64, 128), seed: int = 0) -> Path:
    """Writes the folder and returns it.

    Args:
        folder: where to; it is created.
        channels: U-Net widths of the two levels.
        seed: of the random weights.
    """
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    vocabulary = write_tokenizer(folder / "tokenizer")
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
    )
    unet.save_pretrained(folder / "unet")
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=vocabulary["<|startoftext|>"],
            eos_token_id=vocabulary["<|endoftext|>"],
            pad_token_id=vocabulary["<|endoftext|>"],
            projection_dim=TEXT_WIDTH,
        )
    ).save_pretrained(folder / "text_encoder")
    DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="sample",
        clip_sample=False,
        set_alpha_to_one=False,
    ).save_pretrained(folder / "scheduler")
    (folder / "vae").mkdir(parents=True)
    (folder / "vae" / "config.json").write_text(json.dumps({"scaling_factor": 1.0}))
    patch = torch.linalg.qr(torch.randn(3 * PATCH * PATCH, LATENT_CHANNELS)).Q.T.reshape(-1, 3, PATCH, PATCH)
    save_file(
        {
            "encoder.weight": patch.contiguous(),
            "encoder.bias": torch.randn(LATENT_CHANNELS) * 0.1,
            "decoder.weight": patch.clone().contiguous(),
            "decoder.bias": torch.randn(3) * 0.1,
        },
        folder / "vae" / "diffusion_pytorch_model.safetensors",
    )
    return folder


def write_tokenizer(folder: Path) -> dict[str, int]:
    """A CLIP tokenizer of single characters (no merges); returns its vocabulary."""
    characters = "abcdefghijklmnopqrstuvwxyz,"
    tokens = [*characters, *(f"{c}</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "model_max_length": 77,
                "bos_token": "<|startoftext|>",
                "eos_token": "<|endoftext|>",
                "unk_token": "<|endoftext|>",
                "pad_token": "<|endoftext|>",
            }
        )
    )
    return vocabulary

"""A base model with random weights, laid out like the synthetic world's: a genuine diffusers folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch

LATENT_CHANNELS, TEXT_WIDTH = 32, 96


def make_pipeline_folder(folder: Path, channels: tuple[int, ...] = (32, 64, 128), seed: int = 0) -> Path:
    """Writes the folder and returns it.

    Args:
        folder: where to; it is created.
        channels: U-Net widths, one per level.
        seed: of the random weights.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from difflora.picture_autoencoder import PatchAutoencoder

    torch.manual_seed(seed)
    tokenizer = make_tokenizer(folder / "tokenizer")
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * len(channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
    )
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=TEXT_WIDTH,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="sample",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    autoencoder = PatchAutoencoder(
        LATENT_CHANNELS, pooling=2, decoder_widths=(24, 16, 8), decoder_blocks=(1, 1, 1), scaling_factor=0.7
    )
    for parameter in autoencoder.decoder.network.parameters():  # away from the zero start
        torch.nn.init.normal_(parameter, std=0.05)
    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=CLIPTextModel(text_config),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def make_tokenizer(folder: Path):
    """A CLIP tokenizer of single characters (no merges), made from files as the host reads them."""
    from transformers import CLIPTokenizer

    characters = "abcdefghijklmnopqrstuvwxyz,"
    tokens = [*characters, *(f"{c}</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)

"""Base models as data: sizes of their networks, what a LoRA touches, which encoders read the photos.

The sizes are those of the published configurations, so that layouts and costs come without any weights, and
so that a *narrow* base model with exactly the same names of weights can be written for tests.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from difflora.layout import ATTENTION, ATTENTION_AND_FEED_FORWARD, LoraLayout

Sizes = Mapping[str, Any]

TARGETS = {"attention": ATTENTION, "attention+ff": ATTENTION_AND_FEED_FORWARD}
"""Names of what a LoRA touches, as `make_loras --targets` takes them."""


@dataclass(frozen=True)
class BasePreset:
    """One kind of base model.

    Args:
        name: `ss_base_model_version`, by which tools recognise LoRAs for it (`difflora.lora_metadata`).
        pipeline: class of its diffusers pipeline.
        unet: arguments of diffusers' `UNet2DConditionModel`.
        autoencoder: arguments of diffusers' `AutoencoderKL`.
        text_encoders: arguments of transformers' `CLIPTextConfig`, one set for each encoder; the second one
            is a `CLIPTextModelWithProjection`.
        image_encoders: CLIP vision tower -> arguments of `difflora.vision_tower.VisionConfig`.
        face_packs: insightface packs for its photos, the best first.
    """

    name: str
    pipeline: str
    unet: Sizes
    autoencoder: Sizes
    text_encoders: tuple[Sizes, ...]
    image_encoders: Mapping[str, Sizes]
    face_packs: tuple[str, ...] = ("antelopev2", "buffalo_l")

    def hints(self) -> dict[str, str]:
        """What users have to bring, for messages."""
        return {
            "base": f"the folder of a diffusers {self.pipeline}",
            "face_pack": f"the folder of the insightface pack {' or '.join(self.face_packs)}",
            "image_encoder": f"the folder of a vision model, {' or '.join(self.image_encoders)}",
            "photos": "a folder with one folder of photos per person",
        }

    def build_unet(self, device: torch.device | str = "meta") -> nn.Module:
        """The U-Net with random weights; on the meta device it costs no memory."""
        from diffusers import UNet2DConditionModel

        with torch.device(device):
            return UNet2DConditionModel(**self.unet)

    def layout(self, targets: str = "attention", rank: int = 4, train_down: bool = False) -> LoraLayout:
        """What a LoRA for this base model is, without any weights.

        Args:
            targets: one of `TARGETS`.
            rank: R.
            train_down: see `LoraLayout`.
        """
        return LoraLayout.from_model(self.build_unet(), TARGETS[targets], rank, train_down=train_down)


CLIP_L_TEXT = {  # openai/clip-vit-large-patch14
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
CLIP_BIG_G_TEXT = {  # laion/CLIP-ViT-bigG-14-laion2B-39B-b160k
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
IMAGE_ENCODERS = {
    "CLIP ViT-L/14": {  # openai/clip-vit-large-patch14
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": 768,
    },
    "CLIP ViT-H/14": {  # laion/CLIP-ViT-H-14-laion2B-s32B-b79K
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": 1024,
        "hidden_act": "gelu",
    },
}
AUTOENCODER = {  # stabilityai/sd-vae-ft-mse, and the same sizes in SDXL
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}
SD15 = BasePreset(  # stable-diffusion-v1-5/stable-diffusion-v1-5
    "sd_v1",
    "StableDiffusionPipeline",
    {
        "sample_size": 64,
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        "block_out_channels": (320, 640, 1280, 1280),
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    {**AUTOENCODER, "sample_size": 512, "scaling_factor": 0.18215},
    (CLIP_L_TEXT,),
    IMAGE_ENCODERS,
)
SDXL = BasePreset(  # stabilityai/stable-diffusion-xl-base-1.0
    "sdxl_base_v1-0",
    "StableDiffusionXLPipeline",
    {
        "sample_size": 128,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    {**AUTOENCODER, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
    (CLIP_L_TEXT, CLIP_BIG_G_TEXT),
    IMAGE_ENCODERS,
)
BASE_PRESETS = {"sd15": SD15, "sdxl": SDXL}


# ------------------------------------------------------------------------ narrow models with the exact names

NARROW_AUTOENCODER = {"block_out_channels": (16, 32, 32, 32), "norm_num_groups": 8, "sample_size": 64}
NARROW_TEXT = {"intermediate_size": 48, "num_attention_heads": 2}
MINI_SD15 = replace(
    SD15,
    unet={
        **SD15.unet,
        "sample_size": 8,
        "block_out_channels": (32, 64, 128, 128),
        "cross_attention_dim": 24,
    },
    autoencoder={**SD15.autoencoder, **NARROW_AUTOENCODER},
    text_encoders=({**CLIP_L_TEXT, **NARROW_TEXT, "hidden_size": 24, "projection_dim": 24},),
)
MINI_SDXL = replace(
    SDXL,
    unet={
        **SDXL.unet,
        "sample_size": 8,
        "block_out_channels": (32, 64, 128),
        "attention_head_dim": (1, 2, 4),
        "cross_attention_dim": 64,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 88,  # pooled text 40, six numbers of 8
    },
    autoencoder={**SDXL.autoencoder, **NARROW_AUTOENCODER},
    text_encoders=(
        {**CLIP_L_TEXT, **NARROW_TEXT, "hidden_size": 24, "projection_dim": 24},
        {**CLIP_BIG_G_TEXT, **NARROW_TEXT, "hidden_size": 40, "projection_dim": 40},
    ),
)
MINI_PRESETS = {"sd15": MINI_SD15, "sdxl": MINI_SDXL}


def save_random_pipeline(preset: BasePreset, folder: Path, seed: int = 0) -> Path:
    """Write a base model with random weights as a diffusers pipeline folder.

    Args:
        preset: sizes; the narrow ones take a second.
        folder: where to.
        seed: of the weights.

    Returns:
        The folder.
    """
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from training.world_pipeline import build_scheduler, build_tokenizer

    tokenizer = build_tokenizer(folder / "vocabulary")
    tokens = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks: dict[str, Any] = {
            "unet": preset.build_unet("cpu"),
            "vae": diffusers.AutoencoderKL(**preset.autoencoder),
        }
        kinds = (("", CLIPTextModel), ("_2", CLIPTextModelWithProjection))
        for (suffix, kind), sizes in zip(kinds, preset.text_encoders, strict=False):
            networks[f"text_encoder{suffix}"] = kind(CLIPTextConfig(**sizes, **tokens))
            networks[f"tokenizer{suffix}"] = tokenizer
    scheduler = build_scheduler("epsilon")
    parts = getattr(diffusers, preset.pipeline)(**networks, scheduler=scheduler, **optional_parts(preset))
    parts.save_pretrained(folder, safe_serialization=True)
    return folder


def optional_parts(preset: BasePreset) -> dict[str, None]:
    """What a pipeline wants to be given although it works without."""
    import inspect

    import diffusers

    wanted = inspect.signature(getattr(diffusers, preset.pipeline).__init__).parameters
    return {name: None for name in ("safety_checker", "feature_extractor") if name in wanted}

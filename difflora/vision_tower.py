"""CLIP's vision tower (Radford et al. 2021, sec. 2.4) in plain torch, for files that transformers wrote.

transformers imports its whole processing code for this one network, audio included, and fails where any of
that does not fit the installed torch. In other people's environments, such as ComfyUI's, that is common.

Letters: B pictures, S picture side, L patches and the class token, W width, H heads, C feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's CLIP has x * sigmoid(1.702 x), elementwise, for GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": functional.gelu}


@dataclass(frozen=True)
class VisionConfig:
    """Sizes, under the names of transformers' config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    projection_dim: int
    num_channels: int = 3
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> VisionConfig:
        """From config.json, whose other entries say nothing about the network.

        Raises:
            KeyError: a size is missing, or the activation is unknown.
        """
        known = {item.name: values.get(item.name, item.default) for item in fields(cls)}
        if missing := [name for name, value in known.items() if value is MISSING]:
            raise KeyError(f"config.json has no {', '.join(missing)}")
        if known["hidden_act"] not in ACTIVATIONS:
            raise KeyError(f"unknown hidden_act {known['hidden_act']!r}: known are {', '.join(ACTIVATIONS)}")
        return cls(**known)


class VisionOutput(NamedTuple):
    """Projected class token (B, C), and class token and patches of the last layer (B, L, W)."""

    projected: Tensor
    tokens: Tensor


class Attention(nn.Module):
    """Multi-head self-attention with biases."""

    def __init__(self, config: VisionConfig) -> None:
        """Four square projections."""
        super().__init__()
        self.num_heads, width = config.num_attention_heads, config.hidden_size
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, W) -> (B, L, W)."""
        q, k, v = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, L, W / H)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)  # (B, H, L, W / H)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # (B, L, W)


class Mlp(nn.Module):
    """Two layers."""

    def __init__(self, config: VisionConfig) -> None:
        """Widen, activate, narrow."""
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, W) -> (B, L, W)."""
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: VisionConfig) -> None:
        """Attention and MLP, each behind a norm."""
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, W) -> (B, L, W)."""
        x = x + self.self_attn(self.layer_norm1(x))  # (B, L, W)
        return x + self.mlp(self.layer_norm2(x))  # (B, L, W)


class Embeddings(nn.Module):
    """Patches and a class token, with learned positions."""

    def __init__(self, config: VisionConfig) -> None:
        """The patch projection has no bias."""
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv2d(config.num_channels, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2 + 1, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, L, W)."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # (B, L - 1, W)
        first = self.class_embedding.expand(patches.shape[0], 1, -1)  # (B, 1, W)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight  # (B, L, W)


class Encoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: VisionConfig) -> None:
        """As many layers as configured."""
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, W) -> (B, L, W)."""
        for layer in self.layers:
            x = layer(x)
        return x


class VisionTransformer(nn.Module):
    """Everything before the projection."""

    def __init__(self, config: VisionConfig) -> None:
        """The misspelt name is that of the files."""
        super().__init__()
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> class token and patches (B, L, W), not yet normalised."""
        return self.encoder(self.pre_layrnorm(self.embeddings(pixels)))  # (B, L, W)


class VisionTower(nn.Module):
    """What transformers calls ``CLIPVisionModelWithProjection``, with the same names of weights.

    Args:
        config: sizes.
    """

    def __init__(self, config: VisionConfig) -> None:
        """Build without weights."""
        super().__init__()
        self.config = config
        self.vision_model = VisionTransformer(config)
        self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    def forward(self, pixels: Tensor) -> VisionOutput:
        """Normalised pixels (B, 3, S, S) -> what CLIP compares with text, and the tokens behind it."""
        tokens = self.vision_model(pixels)  # (B, L, W)
        projected = self.visual_projection(self.vision_model.post_layernorm(tokens[:, 0]))  # (B, C)
        return VisionOutput(projected, tokens)


def image_encoder_folder(name: str, folders: Sequence[str | Path]) -> Path | None:
    """Folder of a CLIP vision model, as transformers saves it; None without one.

    Args:
        name: as a checkpoint says it; "openai/clip-vit-large-patch14" is a folder clip-vit-large-patch14.
        folders: where such folders lie.
    """
    paths = (Path(folder) / name.rsplit("/", 1)[-1] for folder in folders)
    return next((path for path in paths if (path / "config.json").is_file()), None)


def load_vision_tower(config: dict[str, Any], weights: dict[str, Tensor]) -> VisionTower:
    """Build the tower from config.json and the tensors beside it.

    Args:
        config: of a ``CLIPVisionModelWithProjection``.
        weights: its tensors; those of a text tower in the same file are left out.

    Raises:
        KeyError: a size is missing in the configuration.
        RuntimeError: tensors are missing or have other shapes.
    """
    tower = VisionTower(VisionConfig.from_json(config))
    ours = ("vision_model.", "visual_projection.")
    kept = {name: tensor for name, tensor in weights.items() if name.startswith(ours)}
    kept.pop("vision_model.embeddings.position_ids", None)  # a buffer in old files
    tower.load_state_dict(kept)
    return tower

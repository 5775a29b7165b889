"""The diffusion transformer over LoRA latents.

adaLN-zero blocks as in DiT (Peebles & Xie 2212.09748, section 3.2), conditioned on time and the mixed image
features, plus cross-attention to the condition tokens. How the condition enters DiffLoRA's own DiT is not
public: this is ours.

Letters: B identities, T latent tokens, C latent channels, D width, S condition tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .errors import DiffLoRAError
from .mixing import Condition


@dataclass(frozen=True)
class DitConfig:
    """Sizes of the transformer; saved in the checkpoint.

    Args:
        latent_tokens: tokens of a LoRA latent (T).
        latent_channels: channels of each (C).
        condition_width: width of the condition, `MifConfig.width`.
        width: width of the transformer (D), a multiple of heads.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP over width.
    """

    latent_tokens: int = 16
    latent_channels: int = 16
    condition_width: int = 128
    width: int = 128
    depth: int = 4
    heads: int = 4
    mlp_ratio: int = 4

    def __post_init__(self) -> None:
        """Refuse sizes that do not divide."""
        if self.width % (2 * self.heads):
            raise DiffLoRAError(
                f"width {self.width} is not a multiple of 2 x heads ({self.heads}): choose another width"
            )


def time_features(time: Tensor, width: int) -> Tensor:
    """Sinusoids of 1000 x time, frequencies 1 to 1e-4 (the DDPM embedding): (B,) in [0, 1] -> (B, width)."""
    half = width // 2
    frequencies = torch.exp(-math.log(1e4) * torch.arange(half, device=time.device) / half)  # (D / 2,)
    angles = 1000 * time[:, None].float() * frequencies  # (B, D / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)  # (B, D)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """X (B, T, D) * (1 + scale (B, D)) + shift (B, D)."""
    return x * (1 + scale[:, None]) + shift[:, None]


class Attention(nn.Module):
    """Multi-head attention of x to `context`."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        """Projections for query, key and value, and the output."""
        super().__init__()
        self.heads = heads
        self.to_query = nn.Linear(width, width)
        self.to_key_value = nn.Linear(context_width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """X (B, T, D), context (B, S, Dc) -> (B, T, D)."""
        query = self.to_query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, D / heads)
        key_value = self.to_key_value(context).unflatten(
            -1, (2, self.heads, -1)
        )  # (B, S, 2, heads, D / heads)
        key, value = key_value.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, S, D / heads) each
        x = scaled_dot_product_attention(query, key, value)  # (B, heads, T, D / heads)
        return self.out(x.transpose(1, 2).flatten(2))  # (B, T, D)


class DitBlock(nn.Module):
    """Self-attention and MLP with adaLN-zero, and cross-attention to the condition tokens."""

    def __init__(self, config: DitConfig) -> None:
        """Three residual branches; the modulation has 3 x 3 vectors: shift, scale, gate for each."""
        super().__init__()
        width = config.width
        self.norm_self = nn.LayerNorm(width, elementwise_affine=False)
        self.norm_cross = nn.LayerNorm(width, elementwise_affine=False)
        self.norm_mlp = nn.LayerNorm(width, elementwise_affine=False)
        self.self_attention = Attention(width, width, config.heads)
        self.cross_attention = Attention(width, config.condition_width, config.heads)
        hidden = config.mlp_ratio * width
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width)
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 9 * width))

    def forward(self, x: Tensor, signal: Tensor, tokens: Tensor) -> Tensor:
        """X (B, T, D), signal (B, D), tokens (B, S, Dc) -> (B, T, D)."""
        shift_s, scale_s, gate_s, shift_c, scale_c, gate_c, shift_m, scale_m, gate_m = self.modulation(
            signal
        ).chunk(9, -1)
        h = modulate(self.norm_self(x), shift_s, scale_s)  # (B, T, D)
        x = x + gate_s[:, None] * self.self_attention(h, h)  # (B, T, D)
        h = modulate(self.norm_cross(x), shift_c, scale_c)  # (B, T, D)
        x = x + gate_c[:, None] * self.cross_attention(h, tokens)  # (B, T, D)
        h = modulate(self.norm_mlp(x), shift_m, scale_m)  # (B, T, D)
        return x + gate_m[:, None] * self.mlp(h)  # (B, T, D)


class DiffusionTransformer(nn.Module):
    """The DiT: noised latent, time and condition -> prediction (x0 or v, as `DiffusionConfig` says)."""

    def __init__(self, config: DitConfig) -> None:
        """Build and initialise."""
        super().__init__()
        self.config = config
        width = config.width
        self.latent_in = nn.Linear(config.latent_channels, width)
        self.position = nn.Parameter(torch.empty(config.latent_tokens, width))
        self.time_in = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.condition_in = nn.Linear(config.condition_width, width)
        self.blocks = nn.ModuleList(DitBlock(config) for _ in range(config.depth))
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation_out = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.latent_out = nn.Linear(width, config.latent_channels)
        self._initialise()

    def _initialise(self) -> None:
        """adaLN-zero: blocks start as the identity, the output as 0, the mean of a standardised latent."""
        nn.init.normal_(self.position, std=0.02)
        silent = [self.modulation_out[-1], self.latent_out]
        silent += [module.modulation[-1] for module in self.modules() if isinstance(module, DitBlock)]
        for layer in silent:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, latent: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """One evaluation.

        Args:
            latent: (B, T, C) noised, standardised.
            time: (B,) in [0, 1], 1 is noise.
            condition: vector (B, Dc), tokens (B, S, Dc).

        Returns:
            (B, T, C) prediction.
        """
        x = self.latent_in(latent) + self.position  # (B, T, D)
        signal = self.time_in(time_features(time, self.config.width).to(x.dtype))  # (B, D)
        signal = signal + self.condition_in(condition.vector)  # (B, D)
        for block in self.blocks:
            x = block(x, signal, condition.tokens)  # (B, T, D)
        shift, scale = self.modulation_out(signal).chunk(2, dim=-1)  # (B, D) each
        return self.latent_out(modulate(self.norm_out(x), shift, scale))  # (B, T, C)

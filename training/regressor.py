"""What a LoRA regressor of HyperLoRA's published sizes has to compute, to measure ourselves against.

HyperLoRA (Li et al. 2025, arXiv 2503.16944): a perceiver resampler of depth 4 and width 1024 turns features
of the photo into 1,120 queries, one for each lora_down and lora_up of SDXL's 560 attention projections; each
query gives 128 coefficients of that matrix's 128 learned bases. At rank 8 that are 11,612,160 numbers of LoRA
from 1.49 billion numbers of bases. Our own code from these sizes; it exists to be timed and is never trained.

Letters: B people, T feature tokens, Q queries, D width, K bases, n matrices of one size, S numbers of one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from difflora.layout import LoraLayout


@dataclass(frozen=True)
class RegressorConfig:
    """Sizes; the defaults are the published ones, and of CLIP ViT-H/14's patches.

    Args:
        width: D.
        depth: layers of the resampler.
        heads: of its attention.
        bases: K.
        image_tokens: patches and class token.
        image_width: of each of them.
        face_tokens: that the face embedding becomes.
        face_width: of the face embedding.
    """

    width: int = 1024
    depth: int = 4
    heads: int = 16
    bases: int = 128
    image_tokens: int = 257
    image_width: int = 1280
    face_tokens: int = 4
    face_width: int = 512


class ResamplerLayer(nn.Module):
    """Queries attend to features and themselves, then an MLP (Flamingo, arXiv 2204.14198, section 3.1.1)."""

    def __init__(self, config: RegressorConfig) -> None:
        """As IP-Adapter's resampler: no biases, hidden width 4 D."""
        super().__init__()
        width, self.heads = config.width, config.heads
        self.norm_features, self.norm_queries = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_query = nn.Linear(width, width, bias=False)
        self.to_key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width, bias=False),
            nn.GELU(),
            nn.Linear(4 * width, width, bias=False),
        )

    def forward(self, features: Tensor, queries: Tensor) -> Tensor:
        """Features (B, T, D), queries (B, Q, D) -> (B, Q, D)."""
        own = self.norm_queries(queries)  # (B, Q, D)
        both = torch.cat([self.norm_features(features), own], dim=1)  # (B, T + Q, D)
        query, key, value = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, ., D / heads)
            for x in (self.to_query(own), *self.to_key_value(both).chunk(2, dim=-1))
        )
        mixed = scaled_dot_product_attention(query, key, value)  # (B, heads, Q, D / heads)
        queries = queries + self.out(mixed.transpose(1, 2).flatten(2))  # (B, Q, D)
        return queries + self.mlp(queries)  # (B, Q, D)


class LoraRegressor(nn.Module):
    """Features of one photo -> both factors of every module, in one pass.

    Args:
        layout: with `train_down`, as both factors are regressed.
        config: sizes.
    """

    def __init__(self, layout: LoraLayout, config: RegressorConfig) -> None:
        """Weights are constants: their values cost no time, and drawing 1.5 billion would."""
        super().__init__()
        self.layout, self.config = layout, config
        width = config.width
        self.image_in = nn.Linear(config.image_width, width)
        self.face_in = nn.Linear(config.face_width, config.face_tokens * width)
        self.queries = nn.Parameter(torch.randn(len(layout.tensors), width) * width**-0.5)
        self.layers = nn.ModuleList(ResamplerLayer(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.to_coefficients = nn.Linear(width, config.bases)
        sizes = sorted({tensor.stop - tensor.start for tensor in layout.tensors})
        self.groups = [
            [i for i, tensor in enumerate(layout.tensors) if tensor.stop - tensor.start == size]
            for size in sizes
        ]
        self.bases = nn.ParameterList(
            torch.empty(len(group), config.bases, size).fill_(1e-3)  # written to, or it is no memory at all
            for group, size in zip(self.groups, sizes, strict=True)
        )

    def forward(self, image: Tensor, face: Tensor) -> dict[tuple[str, str], Tensor]:
        """Image (B, T', C), face (B, 512) -> (module, part) -> (B, *shape)."""
        tokens = self.face_in(face).unflatten(-1, (self.config.face_tokens, -1))  # (B, face tokens, D)
        features = torch.cat([self.image_in(image), tokens], dim=1)  # (B, T, D)
        queries = self.queries.expand(len(image), -1, -1)  # (B, Q, D)
        for layer in self.layers:
            queries = layer(features, queries)  # (B, Q, D)
        coefficients = self.to_coefficients(self.norm(queries)).transpose(0, 1)  # (Q, B, K)
        factors = {}
        for group, bases in zip(self.groups, self.bases, strict=True):
            matrices = torch.bmm(coefficients[group], bases)  # (n, B, S)
            for i, matrix in zip(group, matrices, strict=True):
                spec = self.layout.tensors[i]
                factors[spec.module, spec.part] = matrix.unflatten(-1, spec.shape)  # (B, *shape)
        return factors

"""MIF, mixed image features: N photos of one person -> one condition for the transformer.

The paper mixes a frozen face encoder's and a frozen image encoder's features in a trainable block before the
DiT; another paper reports the mixing to be a mixture-of-experts-like gate. Experts, pooling and sizes are
ours.

Letters: B identities, N photos, E experts, M tokens per photo, S condition tokens, D width, C feature width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .errors import DiffLoRAError
from .linear_prior import LatentPrior


@dataclass(frozen=True)
class MifConfig:
    """Sizes of the mixing block; saved in the checkpoint.

    Args:
        face_width: width of the face embedding (insightface: 512).
        image_width: width of the image features (C), the grid included.
        image_grid: cells on a side of the patches among them, see `features.image_features`; 0 is the paper's
            CLIP embedding alone.
        width: width of the condition (D), a multiple of heads.
        experts: experts in all, half of them read the face, half the image features; even.
        tokens_per_photo: tokens that each photo contributes (M).
        condition_tokens: learned queries that pool the photos (S).
        heads: attention heads of the pooling.
    """

    face_width: int = 512
    image_width: int = 96
    image_grid: int = 0
    width: int = 128
    experts: int = 4
    tokens_per_photo: int = 4
    condition_tokens: int = 4
    heads: int = 4

    def __post_init__(self) -> None:
        """Refuse sizes that do not divide."""
        if self.experts < 2 or self.experts % 2:
            raise DiffLoRAError(
                f"experts is {self.experts}: use an even number, half for faces and half for images"
            )
        if self.width % self.heads:
            raise DiffLoRAError(
                f"width {self.width} is not a multiple of heads {self.heads}: choose heads that divide"
            )


@dataclass(frozen=True)
class Condition:
    """What the transformer is told: vector (B, D) for adaLN, tokens (B, S, D) for cross-attention.

    `prior` is what a linear map says about the latent, if the model has one; see `linear_prior`.
    """

    vector: Tensor
    tokens: Tensor
    prior: LatentPrior | None = None

    def joined(self, other: Condition) -> Condition:
        """The rows of both, those of the other behind."""
        prior = None
        if self.prior is not None and other.prior is not None:
            prior = LatentPrior(*(torch.cat(pair) for pair in zip(self.prior, other.prior, strict=True)))
        return Condition(
            torch.cat([self.vector, other.vector]), torch.cat([self.tokens, other.tokens]), prior
        )


class Expert(nn.Module):
    """One reader of one kind of feature: (B, N, C) -> (B, N, M * D)."""

    def __init__(self, in_width: int, width: int, out_width: int) -> None:
        """Two linear maps around a SiLU."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_width, 2 * width), nn.SiLU(), nn.Linear(2 * width, out_width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, M * D)."""
        return self.layers(x)


class PhotoPooling(nn.Module):
    """Learned queries attend to the tokens of all photos; the order of the photos cannot matter."""

    def __init__(self, width: int, queries: int, heads: int) -> None:
        """S learned queries, one attention layer, one MLP."""
        super().__init__()
        self.heads = heads
        self.queries = nn.Parameter(torch.randn(queries, width) * width**-0.5)
        self.to_key, self.to_value = nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, heads, T, D / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Pool: tokens (B, N * M, D), mask (B, N * M) bool or added to the logits -> (B, S, D)."""
        query = self.queries.to(tokens.dtype).expand(tokens.shape[0], -1, -1)  # (B, S, D)
        x = scaled_dot_product_attention(
            self._split(query),
            self._split(self.to_key(tokens)),
            self._split(self.to_value(tokens)),
            attn_mask=mask[:, None, None, :],
        )  # (B, heads, S, D / heads)
        x = query + self.out(x.transpose(1, 2).flatten(2))  # (B, S, D)
        return x + self.mlp(self.norm(x))  # (B, S, D)


class MixedImageFeatures(nn.Module):
    """The MIF block: features of N photos of each person -> `Condition`.

    A row without any photo is the null condition of classifier-free guidance, so dropping a condition is a
    mask.
    """

    def __init__(self, config: MifConfig) -> None:
        """Build gate, experts, pooling and the learned null condition."""
        super().__init__()
        self.config = config
        width, out_width = config.width, config.width * config.tokens_per_photo
        self.face_norm = nn.LayerNorm(config.face_width)
        self.image_norm = nn.LayerNorm(config.image_width)
        self.gate = nn.Linear(config.face_width + config.image_width, config.experts)
        half = config.experts // 2
        self.face_experts = nn.ModuleList(Expert(config.face_width, width, out_width) for _ in range(half))
        self.image_experts = nn.ModuleList(Expert(config.image_width, width, out_width) for _ in range(half))
        self.pooling = PhotoPooling(width, config.condition_tokens, config.heads)
        self.to_vector = nn.Linear(width * config.condition_tokens, width)
        self.null_tokens = nn.Parameter(torch.zeros(config.condition_tokens, width))
        self.norm = nn.LayerNorm(width)

    def expert_weights(self, face: Tensor, image: Tensor) -> Tensor:
        """Share of each expert per photo: (B, N, E), sums to 1 over E; face experts come first."""
        both = torch.cat([self.face_norm(face), self.image_norm(image)], dim=-1)  # (B, N, 512 + C)
        return self.gate(both).softmax(dim=-1)  # (B, N, E)

    def forward(self, face: Tensor, image: Tensor, mask: Tensor) -> Condition:
        """Mix the photos of each person.

        Args:
            face: (B, N, 512) unit-length face embeddings.
            image: (B, N, C) image features.
            mask: (B, N) bool, true where there is a photo. All false in a row: the null condition. Or float,
                >= 0: how many times a photo counts, a weight between absent (0) and twice listed (2). The
                pooling is a softmax over photos, in which log(weight) added to the logits *is* listing the
                photo that often, so that no training is needed for it.

        Returns:
            `Condition` with vector (B, D) and tokens (B, S, D).

        Raises:
            DiffLoRAError: the widths are not those of the configuration, or a weight is negative.
        """
        config = self.config
        if face.shape[-1] != config.face_width or image.shape[-1] != config.image_width:
            raise DiffLoRAError(
                f"features are {face.shape[-1]} (face) and {image.shape[-1]} (image) wide, but this model "
                f"was trained on {config.face_width} and {config.image_width}: use the face pack and image "
                "encoder named in its checkpoint"
            )
        if mask.is_floating_point() and not bool((mask >= 0).all()):
            raise DiffLoRAError("the weight of a photo is negative or no number: use 0 to leave a photo out")
        weights = self.expert_weights(face, image)  # (B, N, E)
        face, image = self.face_norm(face), self.image_norm(image)  # (B, N, 512), (B, N, C)
        opinions = [expert(face) for expert in self.face_experts] + [
            expert(image) for expert in self.image_experts
        ]
        mixed = (torch.stack(opinions, dim=-1) * weights[:, :, None]).sum(dim=-1)  # (B, N, M * D)
        tokens = mixed.unflatten(-1, (config.tokens_per_photo, -1)).flatten(1, 2)  # (B, N * M, D)

        has_photo = (mask > 0).any(dim=1)  # (B,)
        safe_mask = (mask > 0) | ~has_photo[:, None]  # (B, N); an empty softmax would be NaN
        if mask.is_floating_point():
            safe_mask = torch.where(has_photo[:, None], mask, 1.0).to(tokens.dtype).log()  # (B, N)
        safe_mask = safe_mask.repeat_interleave(config.tokens_per_photo, dim=1)  # (B, N * M)
        pooled = self.pooling(tokens, safe_mask)  # (B, S, D)
        pooled = torch.where(has_photo[:, None, None], pooled, self.null_tokens.to(pooled.dtype))  # (B, S, D)
        pooled = self.norm(pooled)  # (B, S, D)
        return Condition(vector=self.to_vector(pooled.flatten(1)), tokens=pooled)

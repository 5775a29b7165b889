"""LAE, the LoRA weight autoencoder: normalised flat weights <-> LoRA latent.

1-D convolutions are the paper's main compression layers. A plain convolution over the flat vector fails,
because flat order is not spatial; so every tensor of the layout is cut into tokens, every (layer, token)
position has its own linear map, and the convolutions run over the sequence of tokens. `linear_path` is ours.

Letters: B identities, P parameters of one LoRA, T weight tokens, L numbers in a weight token, W token width,
D width, S latent tokens, C latent channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .controls import PrincipalComponents
from .errors import DiffLoRAError, LayoutError
from .layout import LoraLayout
from .linear_path import LinearPath


@dataclass(frozen=True)
class LaeConfig:
    """Sizes and loss of the autoencoder; saved in the checkpoint.

    The position-specific maps hold about 2 x P x token_width numbers: token_width is what keeps SDXL
    affordable (P 5.8 M at rank 4: 46 M with token_width 4), token_size only sets the length of the sequence.
    The linear path holds P x linear_rank numbers.

    Args:
        latent_tokens: length of the latent (S).
        latent_channels: channels of each latent token (C).
        token_size: tensors are cut into equal tokens of at most this many numbers (L).
        token_width: width of a weight token behind its own linear map (W).
        width: channels of the convolutions (D).
        stages: strided convolutions on the way down to latent_tokens, >= 1.
        blocks_per_stage: residual blocks behind each of them.
        linear_rank: of the linear path beside the convolutions, at most S x C; 0 for none, as in the paper.
        weight_preserving: lambda of the weight-preserving loss; 0 is plain reconstruction.
        weight_cap: upper end of a weight in that loss.
    """

    latent_tokens: int = 16
    latent_channels: int = 16
    token_size: int = 512
    token_width: int = 32
    width: int = 128
    stages: int = 2
    blocks_per_stage: int = 1
    linear_rank: int = 0
    weight_preserving: float = 1.0
    weight_cap: float = 5.0

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        for name in ("latent_tokens", "latent_channels", "token_size", "token_width", "width", "stages"):
            if getattr(self, name) < 1:
                raise DiffLoRAError(f"LaeConfig.{name} is {getattr(self, name)}: it must be at least 1")
        if not 0 <= self.linear_rank <= self.latent_tokens * self.latent_channels:
            raise DiffLoRAError(
                f"LaeConfig.linear_rank is {self.linear_rank}: it must be from 0 to the "
                f"{self.latent_tokens * self.latent_channels} numbers of the latent"
            )


def token_index(layout: LoraLayout, token_size: int) -> Tensor:
    """Where the numbers of each token lie in the flat vector.

    Args:
        layout: the tensors to cut; no token spans two of them.
        token_size: longest token.

    Returns:
        (T, L) int64 positions in the flat vector; P (one past its end) is padding.
    """
    tokens = []
    for tensor in layout.tensors:
        size = tensor.stop - tensor.start
        step = math.ceil(size / math.ceil(size / token_size))  # equal pieces instead of a short last one
        tokens += [
            range(start, min(start + step, tensor.stop)) for start in range(tensor.start, tensor.stop, step)
        ]
    index = torch.full((len(tokens), max(map(len, tokens))), layout.num_parameters)  # (T, L)
    for row, token in enumerate(tokens):
        index[row, : len(token)] = torch.arange(token.start, token.stop)
    return index


def choose_strides(num_tokens: int, latent_tokens: int, stages: int) -> list[int]:
    """Strides, as equal as possible, that take at least num_tokens to latent_tokens in `stages` steps."""
    strides, factor = [], math.ceil(num_tokens / latent_tokens)
    for stage in range(stages):
        stride = math.ceil(round(factor ** (1 / (stages - stage)), 6))
        factor = math.ceil(factor / stride)
        strides.append(stride)
    return strides


class ResidualBlock(nn.Module):
    """Two 1-D convolutions over the token sequence."""

    def __init__(self, width: int) -> None:
        """The second convolution starts at zero: the block starts as the identity."""
        super().__init__()
        groups = math.gcd(8, width)
        self.layers = nn.Sequential(
            nn.GroupNorm(groups, width),
            nn.SiLU(),
            nn.Conv1d(width, width, 3, padding=1),
            nn.GroupNorm(groups, width),
            nn.SiLU(),
            nn.Conv1d(width, width, 3, padding=1),
        )
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, T) -> (B, D, T)."""
        return x + self.layers(x)


class TokenMixer(nn.Module):
    """An MLP across the latent tokens (MLP-Mixer, 2105.01601): convolutions are local."""

    def __init__(self, width: int, tokens: int) -> None:
        """Hidden size four times the tokens."""
        super().__init__()
        self.norm = nn.GroupNorm(math.gcd(8, width), width)
        self.layers = nn.Sequential(nn.Linear(tokens, 4 * tokens), nn.GELU(), nn.Linear(4 * tokens, tokens))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, S) -> (B, D, S)."""
        return x + self.layers(self.norm(x))


class WeightsToTokens(nn.Module):
    """Flat weights -> tokens, each through its own linear map."""

    def __init__(self, index: Tensor, num_parameters: int, width: int) -> None:
        """One (L, W) map and one bias, its (layer, token) position, per token of `index` (T, L)."""
        super().__init__()
        self.register_buffer("index", index, persistent=False)
        self.index: Tensor
        length = index.shape[1]
        scale = (
            (index < num_parameters).sum(dim=1).float().rsqrt()[:, None, None]
        )  # (T, 1, 1); unit variance stays
        self.maps = nn.Parameter(torch.randn(index.shape[0], length, width) * scale)
        self.position = nn.Parameter(torch.randn(index.shape[0], width) * 0.02)

    def forward(self, flat_weights: Tensor) -> Tensor:
        """(B, P) -> (B, T, W)."""
        padded = torch.nn.functional.pad(flat_weights, (0, 1))  # (B, P + 1); padding tokens read the 0
        tokens = padded[:, self.index].transpose(0, 1)  # (T, B, L)
        return torch.baddbmm(self.position[:, None], tokens, self.maps).transpose(0, 1)  # (B, T, W)


class TokensToWeights(nn.Module):
    """Tokens, each through its own linear map -> flat weights; the mirror of `WeightsToTokens`."""

    def __init__(self, index: Tensor, num_parameters: int, width: int) -> None:
        """`index` (T, L) from `token_index`; one (W, L) map per token and a bias per number."""
        super().__init__()
        real = (
            index.flatten() < num_parameters
        )  # (T * L,); tokens lie in flat order, so selecting is un-padding
        self.register_buffer("real", real.nonzero().squeeze(1), persistent=False)
        self.real: Tensor
        self.maps = nn.Parameter(torch.randn(index.shape[0], width, index.shape[1]) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(num_parameters))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, W) -> (B, P)."""
        weights = torch.bmm(tokens.transpose(0, 1), self.maps).transpose(0, 1)  # (B, T, L)
        return weights.flatten(1)[:, self.real] + self.bias  # (B, P)


class LoraAutoencoder(nn.Module):
    """The LAE: `encode` (B, P) -> (B, S, C) and `decode` (B, S, C) -> (B, P), both on normalised weights."""

    def __init__(self, layout: LoraLayout, config: LaeConfig) -> None:
        """Cut the layout into tokens and build encoder and mirrored decoder."""
        super().__init__()
        self.config = config
        self.num_parameters = layout.num_parameters
        index = token_index(layout, config.token_size)  # (T, L)
        strides = choose_strides(len(index), config.latent_tokens, config.stages)
        self.num_tokens, width = len(index), config.width
        self.padded_tokens = config.latent_tokens * math.prod(strides)

        self.weights_to_tokens = WeightsToTokens(index, layout.num_parameters, config.token_width)
        self.tokens_to_weights = TokensToWeights(index, layout.num_parameters, config.token_width)

        # Blocks stand behind the strides, where the sequence is short: in front they cost twice as much.
        down: list[nn.Module] = []
        up: list[nn.Module] = [TokenMixer(width, config.latent_tokens)]
        for stage, stride in enumerate(strides):
            outer = config.token_width if stage == 0 else width
            down += [nn.Conv1d(outer, width, stride, stride)]
            down += [ResidualBlock(width) for _ in range(config.blocks_per_stage)]
        for stage, stride in reversed(list(enumerate(strides))):
            outer = config.token_width if stage == 0 else width
            up += [ResidualBlock(width) for _ in range(config.blocks_per_stage)]
            up += [nn.ConvTranspose1d(width, outer, stride, stride)]
        down += [TokenMixer(width, config.latent_tokens)]
        self.down, self.up = nn.Sequential(*down), nn.Sequential(*up)
        self.to_latent = nn.Linear(width, config.latent_channels)
        self.from_latent = nn.Linear(config.latent_channels, width)
        self.latent_position = nn.Parameter(torch.randn(config.latent_tokens, width) * 0.02)
        latent = (config.latent_tokens, config.latent_channels)
        self.linear_path = (
            LinearPath(layout.num_parameters, latent, config.linear_rank) if config.linear_rank else None
        )

    @torch.no_grad()
    def start_from_components(self, flat_weights: Tensor) -> None:
        """Become the principal component analysis of a library; see `linear_path`.

        The linear path becomes the components of the library, the maps of the tokens those of each token, and
        the convolutions add nothing yet.

        Args:
            flat_weights: (n, P) normalised, n > 1.

        Raises:
            DiffLoRAError: there is no linear path.
        """
        if self.linear_path is None:
            raise DiffLoRAError("this autoencoder has no linear path: give LaeConfig a linear_rank")
        into, out_of = self.weights_to_tokens, self.tokens_to_weights
        tokens = nn.functional.pad(flat_weights, (0, 1))[:, into.index].transpose(0, 1)  # (T, n, L)
        _, directions = torch.linalg.eigh(tokens.mT @ tokens)  # (T, L, L), most important last
        width = min(self.config.token_width, directions.shape[-1])  # W, unless a token is shorter
        directions = directions.flip(-1)[..., :width]  # (T, L, W)
        silent = (into.position, out_of.bias, *self.up[-1].parameters(), *self.to_latent.parameters())
        for parameter in (into.maps, out_of.maps, *silent):
            parameter.zero_()
        into.maps[..., :width] = directions
        out_of.maps[:, :width] = directions.mT
        count = min(self.config.linear_rank, len(flat_weights) - 1)
        self.linear_path.start_from(PrincipalComponents.fit(flat_weights, count))

    def encode(self, flat_weights: Tensor) -> Tensor:
        """Compress.

        Args:
            flat_weights: (B, P) normalised.

        Returns:
            (B, S, C) latent, not yet standardised.

        Raises:
            LayoutError: P is not the layout's.
        """
        if flat_weights.shape[-1] != self.num_parameters:
            raise LayoutError(
                f"the LoRA has {flat_weights.shape[-1]} numbers, this autoencoder was built "
                f"for {self.num_parameters}: use LoRAs of the base model and rank that it was trained on"
            )
        tokens = self.weights_to_tokens(flat_weights)  # (B, T, W)
        x = torch.nn.functional.pad(tokens, (0, 0, 0, self.padded_tokens - self.num_tokens))  # (B, T', W)
        x = self.down(x.transpose(1, 2))  # (B, D, S)
        latent = self.to_latent(x.transpose(1, 2))  # (B, S, C)
        return latent if self.linear_path is None else latent + self.linear_path.encode(flat_weights)

    def decode(self, latent: Tensor) -> Tensor:
        """Expand.

        Args:
            latent: (B, S, C), not standardised.

        Returns:
            (B, P) normalised flat weights.
        """
        x = self.from_latent(latent) + self.latent_position  # (B, S, D)
        x = self.up(x.transpose(1, 2))  # (B, W, T')
        flat_weights = self.tokens_to_weights(x.transpose(1, 2)[:, : self.num_tokens])  # (B, P)
        return flat_weights if self.linear_path is None else flat_weights + self.linear_path.decode(latent)

    def decoder_parameters(self) -> list[nn.Parameter]:
        """Everything `decode` uses, for training it further while the encoder is frozen."""
        modules = [self.from_latent, self.up, self.tokens_to_weights]
        return [self.latent_position, *(parameter for module in modules for parameter in module.parameters())]


def lae_loss(reconstruction: Tensor, target: Tensor, weight_preserving: float, weight_cap: float) -> Tensor:
    """Reconstruction and weight-preserving loss in one weighted squared error.

        loss_b = sum_p a_bp (w_bp - w'_bp)^2 / sum_p a_bp
        a_bp = min(1 + lambda |w_bp| / mean_p |w_bp|, cap)

    The paper names both terms and shows that the *large* weights carry identity, but its exact formula is not
    public: this is our reading. It is measured on normalised weights, and dividing by the sum of the weights
    keeps the learning rate comparable between values of lambda. In the prototype lambda 1 lowered R2 and
    raised the identity similarity of decoded LoRAs: it counters shrinkage.

    Args:
        reconstruction: (B, P), normalised.
        target: (B, P), normalised.
        weight_preserving: lambda, >= 0.
        weight_cap: largest weight of a number.

    Returns:
        (B,) loss per identity.
    """
    magnitude = target.abs()  # (B, P)
    relative = magnitude / magnitude.mean(dim=-1, keepdim=True).clamp_min(1e-12)  # (B, P)
    importance = (1 + weight_preserving * relative).clamp(max=weight_cap)  # (B, P)
    error = (reconstruction - target).square()  # (B, P)
    return (importance * error).sum(dim=-1) / importance.sum(dim=-1)  # (B,)


def explained_variance(reconstruction: Tensor, target: Tensor) -> Tensor:
    """R2 against predicting 0, the mean LoRA, on normalised weights: (B, P) twice -> 0-d, 1 is perfect."""
    return 1 - (reconstruction - target).square().sum() / target.square().sum().clamp_min(1e-12)

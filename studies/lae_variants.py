"""The weight autoencoders that the study compares: ours, with one thing changed at a time.

Letters: B LoRAs, P parameters of one LoRA, S latent tokens, C latent channels, D channels of a convolution.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from difflora.autoencoder import LaeConfig, LoraAutoencoder, lae_loss
from difflora.layout import LoraLayout
from training.presets import PRESETS
from training.settings import LaeTrainingConfig

LAE = PRESETS["synthetic"].networks.lae
TRAINING = PRESETS["synthetic"].lae
CHANNELS = (16, 32, 64, 128)
"""Of the convolutions over the flat vector; each has a stride of 4."""
TOP_SHARE = 0.2
"""Which largest numbers of a LoRA the hard loss weighs more."""


class FlatConvolution(nn.Module):
    """The paper's literal reading: 1-D convolutions over the flat vector, and no map that knows its place.

    Same latent, same interface as `LoraAutoencoder`.
    """

    def __init__(self, layout: LoraLayout, config: LaeConfig) -> None:
        """Strides of 4, then one that leaves the latent's tokens; the decoder is the mirror."""
        super().__init__()
        self.config, self.num_parameters = config, layout.num_parameters
        widths, shrunk = (1, *CHANNELS), 4 ** len(CHANNELS)
        last = -(-layout.num_parameters // (shrunk * config.latent_tokens))  # stride of the last layer
        self.padded = shrunk * last * config.latent_tokens
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for inner, outer in pairwise(widths):
            down += [nn.Conv1d(inner, outer, 8, 4, padding=2), nn.SiLU()]
            up = [nn.SiLU(), nn.ConvTranspose1d(outer, inner, 8, 4, padding=2), *up]
        width = widths[-1]
        self.down = nn.Sequential(*down, nn.Conv1d(width, config.latent_channels, last, last))
        self.up = nn.Sequential(nn.ConvTranspose1d(config.latent_channels, width, last, last), *up)

    def encode(self, flat_weights: Tensor) -> Tensor:
        """(B, P) -> (B, S, C)."""
        padded = nn.functional.pad(flat_weights, (0, self.padded - self.num_parameters))  # (B, P')
        return self.down(padded[:, None]).mT  # (B, S, C)

    def decode(self, latent: Tensor) -> Tensor:
        """(B, S, C) -> (B, P)."""
        return self.up(latent.mT)[:, 0, : self.num_parameters]  # (B, P)


def hard_top_loss(
    reconstruction: Tensor, target: Tensor, weight_preserving: float, weight_cap: float
) -> Tensor:
    """Another reading of the weight-preserving loss: the largest numbers of a LoRA count `weight_cap` times.

    Args:
        reconstruction: (B, P), normalised.
        target: (B, P), normalised.
        weight_preserving: not used; the signature is that of `lae_loss`.
        weight_cap: weight of the largest numbers, 1 of the others.

    Returns:
        (B,) loss per LoRA.
    """
    magnitude = target.abs()  # (B, P)
    count = max(1, round(TOP_SHARE * target.shape[1]))
    least = magnitude.topk(count, dim=1).values[:, -1:]  # (B, 1)
    importance = torch.where(magnitude >= least, weight_cap, 1.0)  # (B, P)
    error = (reconstruction - target).square()  # (B, P)
    return (importance * error).sum(dim=1) / importance.sum(dim=1)  # (B,)


@dataclass(frozen=True)
class Variant:
    """One autoencoder.

    Args:
        label: for tables.
        lae: sizes and loss.
        training: how it is trained.
        network: what is built.
        loss: of a reconstruction.
        trained_only: learns from the trained LoRAs alone, not from predictions beside them.
    """

    label: str
    lae: LaeConfig = LAE
    training: LaeTrainingConfig = TRAINING
    network: Callable[[LoraLayout, LaeConfig], nn.Module] = LoraAutoencoder
    loss: Callable[[Tensor, Tensor, float, float], Tensor] = lae_loss
    trained_only: bool = False

    @property
    def latent_numbers(self) -> int:
        """Size of the latent."""
        return self.lae.latent_tokens * self.lae.latent_channels


CONVOLUTIONS = replace(LAE, linear_rank=0)
LATENT_1024 = replace(LAE, latent_tokens=32, latent_channels=32, linear_rank=1024)
LATENT_2048 = replace(LAE, latent_tokens=32, latent_channels=64, linear_rank=2048)
VARIANTS = {
    "default": Variant("default"),
    "convolutions": Variant("convolutions only, as in the paper", CONVOLUTIONS),
    "lambda_0": Variant("no weight-preserving loss (lambda 0)", replace(LAE, weight_preserving=0.0)),
    "flat_convolution": Variant("convolutions over the flat vector", CONVOLUTIONS, network=FlatConvolution),
    "latent_1024": Variant("latent of 1,024 numbers", LATENT_1024),
    "latent_2048": Variant("latent of 2,048 numbers", LATENT_2048),
    "no_latent_noise": Variant("no latent noise", training=replace(TRAINING, latent_noise=0.0)),
    "no_augmentation": Variant(
        "no mixup, no input noise", training=replace(TRAINING, mixup=0.0, input_noise=0.0)
    ),
    "lambda_3": Variant("lambda 3, cap 10", replace(LAE, weight_preserving=3.0, weight_cap=10.0)),
    "hard_top": Variant("largest 20 % count five times", loss=hard_top_loss),
    "trained_256": Variant("default, trained LoRAs only", trained_only=True),
    "trained_2048": Variant("2,048 numbers, trained LoRAs only", LATENT_2048, trained_only=True),
}

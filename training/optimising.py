"""What the training loops of LAE and DiT share: the learning rate and the averaged weights."""

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def rate_at(step: int, num_steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up over `warmup` steps, then a cosine that ends at zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, num_steps - warmup)  # in [0, 1)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


class Average(Generic[Module]):
    """Exponential moving average of a module's parameters; early steps are forgotten faster."""

    def __init__(self, module: Module, decay: float) -> None:
        """Copy the module."""
        self.source, self.decay = module, decay
        self.module: Module = copy.deepcopy(module).train(False).requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the parameters after step number `step` (from 0) in."""
        share = max(1 - self.decay, 1 / (step + 1) ** 0.75)
        for average, parameter in zip(self.module.parameters(), self.source.parameters(), strict=True):
            average.lerp_(parameter, share)

"""Many LoRAs at once over one frozen model: every identity of a batch sees its own weights.

Letters: B identities, K rows per identity, S positions of a sequence, R rank, P parameters of one LoRA.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import LayoutError
from .layout import LoraLayout, SharedDown
from .patch import linear_modules


@contextmanager
def batched_lora(
    model: nn.Module,
    layout: LoraLayout,
    flat_weights: Tensor,
    shared_down: SharedDown | None,
    strength: float | Tensor = 1.0,
) -> Iterator[None]:
    """Within the context, row b * K + k of the model's inputs is computed with the LoRA of identity b.

    out += strength * scale * (x @ lora_down^T) @ lora_up^T, as two matrix products beside the frozen one.
    Gradients flow into `flat_weights` (and into `shared_down` if it requires them), also under autocast.
    With gradient checkpointing the backward pass belongs inside the context too.

    Args:
        model: contains the modules of the layout as `nn.Linear`.
        layout: modules, rank, alpha.
        flat_weights: (B, P).
        shared_down: module -> (R, in); None with `layout.train_down`.
        strength: one number, or (B,).

    Raises:
        LayoutError: the model or the tensors do not fit the layout; rows are not a multiple of B.
    """
    if flat_weights.ndim != 2:
        raise LayoutError(
            f"flat_weights must be (B, P), got {tuple(flat_weights.shape)}: add a batch dimension"
        )
    modules = linear_modules(model, layout)
    factors = layout.factors(flat_weights, shared_down)
    multiplier = layout.scale * strength  # number or (B,)
    if isinstance(multiplier, Tensor):
        multiplier = multiplier.to(flat_weights.device).expand(len(flat_weights))[:, None, None]  # (B, 1, 1)
    handles = []
    try:
        for name, module in modules.items():
            down, up = factors[name]
            handles.append(module.register_forward_hook(low_rank_hook(down, multiplier * up.mT)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def low_rank_hook(down: Tensor, up_t: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """Forward hook that adds the low-rank part to a linear layer's output.

    Args:
        down: (R, in) shared or (B, R, in).
        up_t: (B, R, out), scaled.
    """
    identities = len(up_t)

    def add_low_rank(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0]  # (B*K, ..., in)
        if len(x) % identities:
            raise LayoutError(
                f"{len(x)} input rows are not a multiple of the {identities} identities of the batch"
            )
        x = x.reshape(identities, -1, x.shape[-1])  # (B, K*S, in)
        base = output.reshape(identities, -1, output.shape[-1])  # (B, K*S, out)
        down_x = down.to(x)
        hidden = F.linear(x, down_x) if down.ndim == 2 else torch.bmm(x, down_x.mT)  # (B, K*S, R)
        return torch.baddbmm(base, hidden, up_t.to(base)).reshape(output.shape)  # (B*K, ..., out)

    return add_low_rank

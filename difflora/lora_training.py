"""Train the LoRAs of many people at once over one frozen base model.

Letters: B identities, n pictures of each, K pictures of each per step, (C, h, w) an image latent,
T tokens and W width of a prompt embedding, R rank, P parameters of one LoRA.

The loss is the SUM over identities of per-identity means, so that Adam, which works number by number, treats
every identity as if it were trained alone. All identities see common random numbers (the same picture
indices, noise and times): what differs between two LoRAs is then the people, not the luck.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .base_model import BaseModel
from .batched import batched_lora
from .errors import LayoutError
from .layout import LoraLayout, SharedDown, init_shared_down, orthogonal_rows

Progress = Callable[[int, int, float], None]  # (steps done, steps in all, mean loss); may raise to interrupt
AUTOCAST_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Batch(NamedTuple):
    """Pictures of one step, identity-major: the same K of n for all B identities, with the same noise.

    Args:
        image_latents: (B*K, C, h, w) clean.
        prompt_embeds: (B*K, T, W).
        noise: (B*K, C, h, w).
        timesteps: (B*K,).
        chosen: (K,) numbers of the pictures.
    """

    image_latents: Tensor
    prompt_embeds: Tensor
    noise: Tensor
    timesteps: Tensor
    chosen: Tensor


Objective = Callable[[BaseModel, Batch], Tensor]
"""What LoRAs are trained for: base model with their LoRAs, a batch -> losses (B*K,)."""


def denoising_objective(base: BaseModel, batch: Batch) -> Tensor:
    """The base model's own training loss, (B*K,)."""
    return base.denoising_loss(batch.image_latents, batch.prompt_embeds, batch.noise, batch.timesteps)


@dataclass(frozen=True)
class LoraTrainingConfig:
    """How LoRAs are trained.

    Args:
        num_steps: optimiser steps.
        pictures_per_step: K, pictures of every identity in one step.
        learning_rate: peak rate of Adam. For `lora_up` alone in a tiny network 2e-2 .. 1e-1 worked.
        warmup: fraction of the steps in which the rate rises linearly; then it falls as a cosine to zero.
        weight_decay: AdamW's, number by number.
        average_from: fraction of the steps after which the weights are averaged; 1 turns averaging off.
        average_decay: of the exponential average (exact mean until its horizon 1 / (1 - decay) is full).
        precision: "float32", or the autocast dtype "bfloat16" / "float16".
    """

    num_steps: int = 60
    pictures_per_step: int = 4
    learning_rate: float = 6e-2
    warmup: float = 0.05
    weight_decay: float = 0.0
    average_from: float = 0.6
    average_decay: float = 0.95
    precision: str = "float32"

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.num_steps < 1 or self.pictures_per_step < 1 or not self.learning_rate > 0:
            raise ValueError("num_steps and pictures_per_step must be at least 1, learning_rate above 0")
        if not (0 <= self.warmup <= 1 and 0 <= self.average_from <= 1 and 0 <= self.average_decay < 1):
            raise ValueError("warmup and average_from must lie in 0..1, average_decay in 0..1 without 1")
        if self.precision not in AUTOCAST_DTYPES:
            raise ValueError(f"precision {self.precision!r} is not one of {', '.join(AUTOCAST_DTYPES)}")

    def rate_at(self, step: int) -> float:
        """Learning rate of a step in 0 .. num_steps - 1: linear warm-up, then cosine to zero."""
        warm = max(1, round(self.warmup * self.num_steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        done = (step - warm + 1) / max(1, self.num_steps - warm)  # in (0, 1]
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def train_loras(
    base: BaseModel,
    layout: LoraLayout,
    image_latents: Tensor,
    prompt_embeds: Tensor,
    config: LoraTrainingConfig,
    generator: torch.Generator,
    shared_down: SharedDown,
    initial: Tensor | None = None,
    progress: Progress | None = None,
    objective: Objective = denoising_objective,
) -> Tensor:
    """Train B LoRAs at once; equal, within rounding, to training each alone with the same generator state.

    Args:
        base: frozen base model; its denoiser is left unpatched, also after an interruption.
        layout: what a LoRA is.
        image_latents: (B, n, C, h, w), scaled as the base model wants them.
        prompt_embeds: (n, T, W) the same for everybody, or (B, n, T, W).
        config: see `LoraTrainingConfig`.
        generator: CPU generator; drives picture choice, times and noise, so that devices agree.
        shared_down: module -> (R, in): frozen, or where training starts with `layout.train_down`.
        initial: (P,) or (B, P) to start from; zeros by default (`lora_up` = 0: the base model itself).
        progress: called after every step; raise from it to stop.
        objective: what is made small.

    Returns:
        Flat weights (B, P), float32, detached, on the latents' device.

    Raises:
        LayoutError: shapes do not fit each other.
    """
    identities = len(image_latents)
    device = image_latents.device
    shared_down = {name: down.to(device, torch.float32) for name, down in shared_down.items()}
    if initial is None:
        initial = initial_weights(layout, shared_down)  # (P,)
    with torch.inference_mode(False), torch.enable_grad():  # hosts run nodes under inference_mode
        flat = initial.to(device, torch.float32).expand(identities, layout.num_parameters).clone()  # (B, P)
        flat.requires_grad_()
        down = None if layout.train_down else shared_down
        return optimise(
            base,
            layout,
            image_latents,
            prompt_embeds,
            config,
            generator,
            flat,
            down,
            [flat],
            progress,
            objective,
        )[0]


def learn_shared_down(
    base: BaseModel,
    layout: LoraLayout,
    image_latents: Tensor,
    prompt_embeds: Tensor,
    config: LoraTrainingConfig,
    generator: torch.Generator,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Learn one `lora_down` for a library: `lora_up` of B people and the `lora_down` they share, jointly.

    The result only says which R input directions of a module matter for people: rows are made orthogonal and
    rescaled, which loses nothing, because `lora_up` is trained anew for everybody.

    Args:
        base: as in `train_loras`.
        layout: with `train_down=False`.
        image_latents: (B, n, C, h, w); the more people, the more general the directions.
        prompt_embeds: as in `train_loras`.
        config: as in `train_loras`; the rate of `lora_down` is relative to the size of its entries.
        generator: as in `train_loras`.
        seed: of the random start.
        progress: as in `train_loras`.

    Returns:
        module -> (R, in), float32, on the CPU, to be frozen from now on.

    Raises:
        LayoutError: the layout trains `lora_down` for everybody, or shapes do not fit.
    """
    if layout.train_down:
        raise LayoutError("this layout trains lora_down for every person: there is no shared one to learn")
    device = image_latents.device
    with torch.inference_mode(False), torch.enable_grad():
        down = {name: d.to(device).requires_grad_() for name, d in init_shared_down(layout, seed).items()}
        flat = torch.zeros(
            len(image_latents), layout.num_parameters, device=device, requires_grad=True
        )  # (B, P)
        trained = [flat, *down.values()]
        learned = optimise(
            base, layout, image_latents, prompt_embeds, config, generator, flat, down, trained, progress
        )
    return {name: orthogonal_rows(d.cpu()) for name, d in zip(down, learned[1:], strict=True)}


def optimise(
    base: BaseModel,
    layout: LoraLayout,
    image_latents: Tensor,
    prompt_embeds: Tensor,
    config: LoraTrainingConfig,
    generator: torch.Generator,
    flat: Tensor,
    shared_down: SharedDown | None,
    trained: list[Tensor],
    progress: Progress | None,
    objective: Objective = denoising_objective,
) -> list[Tensor]:
    """The loop: trains `trained` in place and returns their averages over the last steps, detached."""
    check_pictures(image_latents, prompt_embeds)
    groups = [
        {"params": [tensor], "relative_rate": 1.0 if tensor is flat else entry_size(tensor)}
        for tensor in trained
    ]
    optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
    averages = [tensor.detach().clone() for tensor in trained]
    averaged = 0
    batches = common_batches(base, image_latents, prompt_embeds, config, generator)
    for step in range(config.num_steps):
        batch = next(batches)
        with batched_lora(base.denoiser, layout, flat, shared_down):
            with autocast(config.precision, flat.device):
                losses = objective(base, batch)  # (B*K,)
            loss = (
                losses.float().unflatten(0, (len(flat), -1)).mean(dim=1).sum()
            )  # sum over B of means over K
            # within the context, because gradient checkpointing runs the patched model again
            gradients = torch.autograd.grad(loss, trained)
        for tensor, gradient in zip(trained, gradients, strict=True):
            tensor.grad = gradient  # not loss.backward(): the base model gets no gradients
        for group in optimiser.param_groups:
            group["lr"] = config.rate_at(step) * group["relative_rate"]
        optimiser.step()
        if step + 1 <= config.average_from * config.num_steps:
            averages = [tensor.detach().clone() for tensor in trained]
        else:
            averaged += 1
            for average, tensor in zip(averages, trained, strict=True):
                average.lerp_(tensor.detach(), max(1 / averaged, 1 - config.average_decay))
        if progress is not None:
            progress(step + 1, config.num_steps, float(loss.detach()) / len(flat))
    return averages


def common_batches(
    base: BaseModel,
    image_latents: Tensor,
    prompt_embeds: Tensor,
    config: LoraTrainingConfig,
    generator: torch.Generator,
) -> Iterator[Batch]:
    """Endless batches, with the same pictures, times and noise for all identities."""
    num_pictures, count = image_latents.shape[1], config.pictures_per_step
    queue = torch.empty(0, dtype=torch.long)
    while True:
        while len(queue) < count:  # every picture once before any picture twice
            queue = torch.cat([queue, torch.randperm(num_pictures, generator=generator)])
        chosen, queue = queue[:count], queue[count:]  # (K,)
        yield draw_batch(base, image_latents, prompt_embeds, chosen, generator)


def draw_batch(
    base: BaseModel, image_latents: Tensor, prompt_embeds: Tensor, chosen: Tensor, generator: torch.Generator
) -> Batch:
    """Times and noise for the chosen (K,) pictures, the same for everybody; letters as in `train_loras`."""
    identities, count = len(image_latents), len(chosen)
    device, num_times = image_latents.device, len(base.alphas_cumprod)
    prompts = prompt_embeds.expand(identities, *prompt_embeds.shape[-3:])  # (B, n, T, W)
    chosen = chosen.to(device)  # (K,)
    # One time in each of K equal strata: less variance than K independent times.
    uniform = (torch.arange(count) + torch.rand(count, generator=generator)) / count  # (K,) in [0, 1)
    timesteps = (uniform * num_times).long().clamp(max=num_times - 1).to(device)  # (K,)
    noise = torch.randn(count, *image_latents.shape[2:], generator=generator).to(device)  # (K, C, h, w)
    return Batch(
        image_latents[:, chosen].flatten(0, 1),  # (B*K, C, h, w)
        prompts[:, chosen].flatten(0, 1),  # (B*K, T, W)
        noise.repeat(identities, 1, 1, 1),  # (B*K, C, h, w)
        timesteps.repeat(identities),  # (B*K,)
        chosen,
    )


def initial_weights(layout: LoraLayout, shared_down: SharedDown) -> Tensor:
    """Flat weights (P,) of a LoRA without effect: `lora_up` zero, `lora_down` (if in it) the shared one."""
    factors = {
        (spec.module, spec.part): torch.zeros(spec.shape)
        if spec.part == "lora_up"
        else shared_down[spec.module].cpu()
        for spec in layout.tensors
    }
    return layout.flatten(factors)


def entry_size(matrix: Tensor) -> float:
    """Root mean square of a matrix: Adam's steps are relative to it where a matrix does not start at zero."""
    return float(matrix.detach().square().mean().sqrt())


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Autocast context for a precision name."""
    dtype = AUTOCAST_DTYPES[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def check_pictures(image_latents: Tensor, prompt_embeds: Tensor) -> None:
    """Check that latents and prompts belong together.

    Raises:
        LayoutError: wrong number of dimensions, or counts that differ.
    """
    shapes = f"image_latents {tuple(image_latents.shape)}, prompt_embeds {tuple(prompt_embeds.shape)}"
    if image_latents.ndim != 5 or prompt_embeds.ndim not in (3, 4):
        raise LayoutError(f"expected (B, n, C, h, w) and (n, T, W) or (B, n, T, W), got {shapes}")
    if prompt_embeds.shape[:-2] not in (image_latents.shape[:2], image_latents.shape[1:2]):
        raise LayoutError(f"every picture needs one prompt: {shapes}")
    if 0 in image_latents.shape[:2]:
        raise LayoutError(f"training a LoRA needs at least one person and one picture: {shapes}")

"""Pictures of candidates by the host's own sampler.

Letters: n candidates, K pictures of each, P parameters of one LoRA, H, W picture size, h, w latent size.
"""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.sd
import torch
from torch import Tensor

from ...difflora.candidates import Draw
from ...difflora.diffusion import Progress
from ...difflora.lora import Lora
from ...difflora.model import DiffLoRA
from .patching import apply_lora
from .pipeline import FolderModelConfig

SAMPLER, SCHEDULER = "euler", "simple"
SDXL_PX, OTHER_PX = 1024, 512
"""Side of the pictures that SDXL was trained on, and that other Stable Diffusion models were."""


@dataclass(frozen=True)
class Sampling:
    """How candidates are drawn.

    Args:
        prompt: what is drawn.
        num_pictures: of each candidate (K).
        num_steps: of the host's sampler.
        cfg: classifier-free guidance; 1 is none.
        seed: of the noise, which all candidates share.
    """

    prompt: str
    num_pictures: int
    num_steps: int
    cfg: float
    seed: int


def draw_candidates(
    difflora: DiffLoRA,
    model: comfy.model_patcher.ModelPatcher,
    clip: comfy.sd.CLIP,
    vae: comfy.sd.VAE,
    sampling: Sampling,
) -> Draw:
    """A function that draws with each candidate in turn, for ``difflora.candidates.rank_candidates``.

    Args:
        difflora: whose LoRAs they are; its recommended strength is used.
        model: the host's MODEL.
        clip: its text encoder.
        vae: its picture autoencoder.
        sampling: how.

    Returns:
        A function that raises LayoutError if a LoRA does not fit MODEL.
    """

    def draw(flat_weights: Tensor, progress: Progress) -> Tensor:
        positive, negative = (
            clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (sampling.prompt, "")
        )
        empty = _empty_latents(model, vae, sampling.num_pictures)  # (K, Cl, h, w)
        noise = comfy.sample.prepare_noise(empty, sampling.seed)  # (K, Cl, h, w)
        drawn = []
        for index, weights in enumerate(flat_weights):
            lora = Lora.from_flat(difflora.layout, weights.cpu(), _on_cpu(difflora))
            patched = apply_lora(model, lora.state_dict(), difflora.recommended.strength)
            latents = comfy.sample.sample(
                patched,
                noise,
                sampling.num_steps,
                sampling.cfg,
                SAMPLER,
                SCHEDULER,
                positive,
                negative,
                empty,
                callback=_stop_when_cancelled,
                disable_pbar=True,
                seed=sampling.seed,
            )  # (K, Cl, h, w)
            drawn.append(
                vae.decode(latents)[..., :3].movedim(-1, 1).float().cpu() * 2.0 - 1.0
            )  # (K, 3, H, W)
            progress(index + 1, len(flat_weights))
        return torch.stack(drawn)  # (n, K, 3, H, W)

    return draw


def _stop_when_cancelled(*_: object) -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()


def _on_cpu(difflora: DiffLoRA) -> dict[str, Tensor] | None:
    down = difflora.shared_down
    return None if down is None else {name: tensor.cpu() for name, tensor in down.items()}


def _empty_latents(model: comfy.model_patcher.ModelPatcher, vae: comfy.sd.VAE, count: int) -> Tensor:
    """Zeros (K, Cl, h, w) for pictures of the size that the model was trained on."""
    config = model.model.model_config
    if isinstance(config, FolderModelConfig):
        side = config.unet_config["image_size"]
    else:
        pixels = SDXL_PX if isinstance(model.model, comfy.model_base.SDXL) else OTHER_PX
        side = pixels // vae.downscale_ratio
    return torch.zeros(count, model.get_model_object("latent_format").latent_channels, side, side)

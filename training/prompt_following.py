"""How well the base model follows prompts, on many different ones: the few of the table cannot tell.

Letters: K prompts, one picture of each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difflora.base_model import BaseModel
from difflora.diffusion import draw_noise
from difflora.files import load_safetensors, save_safetensors
from difflora.synthetic.judge import Judge
from difflora.synthetic.people import sample_people
from difflora.synthetic.renderer import PHOTO_PX, render
from difflora.synthetic.scenes import Scene, sample_scenes
from training.evaluation_scores import gap_closed, with_error

SCENE_SEED = 503
"""Of the scenes: other than those of the table's prompts and of the photos."""
STYLED = 0.25
"""Share of the prompts that ask for another style than a colour photo's."""
AT_ONCE = 64


def draw_prompts(base: BaseModel, scenes: Scene, num_steps: int, guidance_scale: float, seed: int) -> Tensor:
    """One picture of each prompt: (K, 3, H, W) in [-1, 1]."""
    embeds = base.encode_prompts(scenes.prompts())  # (K, T, W)
    noise = draw_noise(
        (len(embeds), *base.latent_shape), torch.Generator().manual_seed(seed), base.device
    )  # (K, C, h, w)
    with torch.no_grad():
        return torch.cat(
            [
                base.decode(base.sample(prompts, start, num_steps, guidance_scale)).cpu()
                for prompts, start in zip(embeds.split(AT_ONCE), noise.split(AT_ONCE), strict=True)
            ]
        )


def measure_prompt_following(
    base: BaseModel, judge: Judge, count: int, num_steps: int, guidance_scale: float, seed: int, path: Path
) -> dict[str, Any]:
    """Prompt accuracy of the base model and of the renderer on the same prompts.

    Args:
        base: draws.
        judge: whose classifier reads the pictures.
        count: K prompts, all different, of the test people.
        num_steps: of the base model's sampler.
        guidance_scale: of the base model's sampler.
        seed: of the noise.
        path: file of the measurement: read if it exists, so name all that it depends on.

    Returns:
        "prompts": K; "base_model", "renderer": accuracy; "share": their ratio, with intervals over prompts;
        "attributes": attribute -> [base model, renderer].
    """
    scenes = sample_scenes(count, SCENE_SEED, styled=STYLED)
    if not path.is_file():
        traits = torch.cat([sample_people("test", index, 1) for index in range(count)])  # (K, traits)
        pictures = {
            "base_model": draw_prompts(base, scenes, num_steps, guidance_scale, seed),
            "renderer": render(traits, scenes, PHOTO_PX).pictures * 2 - 1,
        }
        found = {
            f"{who}.{attribute}": right[0].contiguous()  # (K,)
            for who, drawn in pictures.items()
            for attribute, right in judge.prompt_accuracy(drawn[None], scenes).items()
        }
        save_safetensors(path, found)
    found, _ = load_safetensors(path)
    of = {
        who: {name.partition(".")[2]: right for name, right in found.items() if name.startswith(f"{who}.")}
        for who in ("base_model", "renderer")
    }
    base_model, renderer = (torch.stack(list(right.values())).nanmean(dim=0) for right in of.values())  # (K,)
    return {
        "prompts": count,
        "base_model": with_error(base_model),
        "renderer": with_error(renderer),
        "share": gap_closed(base_model, torch.zeros_like(base_model), renderer),
        "attributes": {
            name: [round(float(right.nanmean()), 4), round(float(of["renderer"][name].nanmean()), 4)]
            for name, right in of["base_model"].items()
        },
    }

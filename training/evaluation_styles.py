"""People in styles that none of their photos has: a LoRA knows the person, the base model knows the style.

Letters: B people, K prompts, C, h, w latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from difflora.base_model import BaseModel
from difflora.diffusion import draw_noise
from difflora.sheet import SheetRow, draw_grid, to_image
from difflora.synthetic.judge import Judge
from difflora.synthetic.renderer import PHOTO_PX, render
from difflora.synthetic.scenes import ATTRIBUTES, Scene
from training.evaluation_people import Panel
from training.evaluation_pictures import LoraBatch, draw_people
from training.evaluation_scores import with_error

MOST_PEOPLE = 32
SHEET_PEOPLE = 6
HEADINGS = {"difflora_1": "DiffLoRA", "trained_lora": "trained LoRA", "true_renders": "the true person"}
STYLES = tuple(phrase for phrase in ATTRIBUTES["style"] if phrase)


def in_style(scenes: Scene, style: str) -> Scene:
    """The same scenes in another style."""
    return replace(scenes, style=torch.full_like(scenes.style, ATTRIBUTES["style"].index(style)))


def measure_styles(
    base: BaseModel,
    judge: Judge,
    panel: Panel,
    loras: Mapping[str, LoraBatch],
    num_steps: int,
    guidance_scale: float,
    seed: int,
) -> tuple[dict[str, Any], Image.Image]:
    """Likeness and prompt accuracy in every style.

    Args:
        base: draws.
        judge: its recogniser has seen colour photos only; the true people in that style are the ceiling.
        panel: people, of whom the first `MOST_PEOPLE` are drawn, and K scenes.
        loras: row -> LoRAs of at least these people.
        num_steps: of the base model's sampler.
        guidance_scale: of the base model's sampler.
        seed: of the noise, the same for all rows and styles.

    Returns:
        Style -> row -> "identity_similarity" and "prompt_accuracy" with intervals over people, and
        "attributes": attribute -> accuracy; and a sheet of pictures.
    """
    count = min(MOST_PEOPLE, len(panel.traits))
    traits = panel.traits[:count]
    few = {"base_model": None, **{name: replace(of, flat=of.flat[:count]) for name, of in loras.items()}}
    shape = (count, len(panel.scenes), *base.latent_shape)
    noise = draw_noise(shape, torch.Generator().manual_seed(seed), base.device)  # (B, K, C, h, w)
    targets = judge.targets(traits)  # (B, E)
    report: dict[str, Any] = {}
    shown: list[Tensor] = [panel.photos[:SHEET_PEOPLE]]  # (n, 3, H, W) each
    for style in STYLES:
        scenes = in_style(panel.scenes, style)
        embeds = base.encode_prompts(scenes.prompts())  # (K, L, W)
        true = [render(person.expand(len(scenes), -1), scenes, PHOTO_PX).pictures for person in traits]
        rows = {
            **{
                name: draw_people(base, embeds, noise, num_steps, of, guidance_scale)
                for name, of in few.items()
            },
            "true_renders": torch.stack(true) * 2 - 1,
        }  # (B, K, 3, H, W) each
        report[style] = {name: judged(judge, pictures, targets, scenes) for name, pictures in rows.items()}
        for name in (*loras, "true_renders"):
            shown.append(torch.stack([own[i % len(own)] for i, own in enumerate(rows[name][:SHEET_PEOPLE])]))
    columns = [["photo"], *([style, HEADINGS[name]] for style in STYLES for name in (*loras, "true_renders"))]
    sheet = []
    for i in range(min(SHEET_PEOPLE, count)):
        label, *details = panel.scenes.phrases()[i % len(panel.scenes)]
        sheet.append(SheetRow(label, [to_image(column[i]) for column in shown], details[:2]))
    return report, draw_grid(columns, sheet, side=128, label_width=124)


def judged(judge: Judge, pictures: Tensor, targets: Tensor, scenes: Scene) -> dict[str, Any]:
    """Likeness and prompt accuracy of pictures (B, K, 3, H, W) of people (B, E) in K scenes."""
    right = judge.prompt_accuracy(pictures, scenes)  # attribute -> (B, K)
    accuracy = torch.stack(list(right.values())).nanmean(dim=(0, 2))  # (B,)
    return {
        "identity_similarity": with_error(judge.similarity(pictures, targets).mean(dim=1)),
        "prompt_accuracy": with_error(accuracy),
        "attributes": {name: round(float(values.nanmean()), 4) for name, values in right.items()},
    }

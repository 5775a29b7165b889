"""Trains the image encoder of the synthetic world: a CLIP vision tower beside the base model's text tower.

Letters: B pictures, W text width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from difflora.base_model import BaseModel
from difflora.synthetic.captions import sample_captions
from training.common import load_state, polite_interruption, progress_bar, save_state, say
from training.world_pipeline import BaseModelConfig, random_pictures

WIDTH = 96  # of the shared space


def train_image_encoder(
    out: Path, base_model: Path, config: BaseModelConfig, device: str = "cpu"
) -> dict[str, float]:
    """Train a CLIP vision tower (Radford et al. 2021) with the base model's text tower.

    The text tower keeps its weights (the base model needs them); its projection is trained.

    Returns:
        Share of 128 unseen pictures whose own caption scores highest.
    """
    base = BaseModel.load(base_model, device)
    torch.manual_seed(config.seed + 1)
    vision = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=64,
            patch_size=8,
            projection_dim=WIDTH,
            hidden_act="quick_gelu",
        )
    ).to(device)
    project = nn.Linear(config.text_width, WIDTH, bias=False).to(device)
    scale = nn.Parameter(torch.tensor(2.7, device=device))
    parameters = [*vision.parameters(), *project.parameters(), scale]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05, fused=True)
    state_path, batch, done = out / "state.safetensors", 64, 0
    if state_path.is_file():
        state = load_state(state_path)
        vision.load_state_dict(state["vision"])
        project.load_state_dict(state["project"])
        scale.data.copy_(state["scale"])
        optimiser.load_state_dict(state["optimiser"])
        done = state["done"]

    def logits(seed: int, split: str = "train", count: int = batch) -> Tensor:
        traits, scene, pictures = random_pictures(count, seed, split, device)
        captions = [c or "a photo" for c in sample_captions(traits, scene, seed)]
        tokens = base.tokenizer(
            captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            text = base.text_encoder(tokens.to(device)).pooler_output  # (B, W)
        text = nn.functional.normalize(project(text), dim=-1)  # (B, 96)
        image = nn.functional.normalize(vision(pictures).image_embeds, dim=-1)  # (B, 96)
        return scale.exp() * image @ text.T  # (B, B)

    def save() -> None:
        save_state(
            state_path,
            {
                "vision": vision.state_dict(),
                "project": project.state_dict(),
                "scale": scale.data,
                "optimiser": optimiser.state_dict(),
                "done": done,
            },
        )

    bar = progress_bar(config.clip_pictures, "image encoder", done)
    with polite_interruption() as interrupted:
        while done < config.clip_pictures:
            rate = 1e-3 * min(1.0, (done + batch) / 4000, 1.02 - done / config.clip_pictures)
            for group in optimiser.param_groups:
                group["lr"] = rate
            scores, target = logits(5_000_000 + done), torch.arange(batch, device=device)
            loss = (
                nn.functional.cross_entropy(scores, target) + nn.functional.cross_entropy(scores.T, target)
            ) / 2
            loss.backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            done += batch
            bar.update(batch)
            bar.set_postfix(loss=f"{float(loss):.3f}")
            if done % (batch * 100) == 0 or interrupted():
                save()
            if interrupted():
                raise SystemExit(130)
    save()
    with torch.no_grad():
        scores = logits(77, "validation", 128)
    hits = float((scores.argmax(1) == torch.arange(128, device=device)).float().mean())
    folder = out / "image_encoder"
    vision.half().save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(folder)
    say(f"image encoder: {hits:.2f} of unseen pictures find their caption among 128")
    return {"retrieval_top1_of_128": hits}

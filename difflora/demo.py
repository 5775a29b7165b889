"""The whole chain on people whom no model has seen: reference photo -> LoRA -> pictures -> measures.

Letters: R pictures for each of K prompts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean

import torch
from PIL import Image
from torch import Tensor

from .base_model import BaseModel
from .diffusion import draw_noise
from .files import atomic_save
from .lora import Lora
from .model import DiffLoRA
from .patch import apply_lora
from .photos import Photo
from .sheet import SheetRow, draw_grid, to_image
from .synthetic import world
from .synthetic.judge import Judge
from .synthetic.people import sample_people
from .synthetic.renderer import PHOTO_PX, render
from .synthetic.scenes import ATTRIBUTES, Scene, cat_scenes, scene_for

PICTURE_STEPS = 12
"""Steps of the base model's sampler: more are not visibly better."""
NUM_PEOPLE, SHOWN_PEOPLE = 8, 3
"""Who is measured, and how many of them are shown: people differ more than one person's pictures."""
PICTURES_PER_PROMPT = 2
"""What is measured of each person; the first of each is shown."""
REFERENCE_PHRASES = ("smiling", "gray background", "blue shirt")
PROMPT_PHRASES = (
    ("neutral", "blue background", "white shirt"),
    ("smiling", "wearing sunglasses", "yellow background", "black shirt"),
    ("surprised", "facing left", "white background", "red shirt"),
    ("angry", "lit from the left", "red background", "green shirt"),
    ("smiling", "facing right", "wearing a hat", "green background", "purple shirt"),
    ("sad", "golden light", "gray background", "blue shirt"),
    ("smiling", "white background", "sepia"),
    ("smiling", "facing right", "white background", "pencil sketch"),
)
"""What the prompts ask for, over a neutral scene. None of them says what the person looks like.

Prompts for a style are shown and not measured: the judge knows faces from colour photos."""

UNREMARKABLE = ("soft light", "facing forward")
"""Phrases that the headings of the picture leave out."""


@dataclass(frozen=True)
class PersonReport:
    """What was measured of one person; rows are base_model, personalised and true_renders.

    Args:
        person: index in the test split, which nothing was trained on.
        identity_similarity: row -> mean cosine to the person by the evaluation recogniser.
        prompt_accuracy: row -> part of the prompts' attributes that the pictures show.
    """

    person: int
    identity_similarity: dict[str, float]
    prompt_accuracy: dict[str, float]


@dataclass(frozen=True)
class DemoReport:
    """What the demo measured, as in `report.json`.

    Args:
        seed: of the LoRAs' sampler and of the pictures' noise.
        strength: multiplier of the LoRAs.
        prompts: K prompts.
        identity_similarity: row -> mean over the people.
        prompt_accuracy: likewise.
        people: everybody's own.
        seconds: stage -> wall-clock seconds, for all of them.
    """

    seed: int
    strength: float
    prompts: list[str]
    identity_similarity: dict[str, float]
    prompt_accuracy: dict[str, float]
    people: list[PersonReport]
    seconds: dict[str, float]


@dataclass
class Stopwatch:
    """Seconds per stage, announced as they pass."""

    announce: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)
        self.announce(f"{name:<46} {self.seconds[name]:6.1f} s")


def run_demo(
    out: Path,
    person: int = 0,
    seed: int = 0,
    strength: float | None = None,
    device: str = "cpu",
    announce: Callable[[str], None] = lambda line: None,
) -> DemoReport:
    """Personalise the synthetic base model to `NUM_PEOPLE` people and show what came of it.

    Writes `reference.png` and `lora.safetensors` of the first of them, `grid.png` and `report.json`.

    Args:
        out: folder for the files; made if needed.
        person: index of the first one in the test split.
        seed: of the LoRAs and of the pictures' noise, which base model and personalised models share.
        strength: multiplier of the LoRAs; by default what the checkpoint recommends.
        device: where the networks run.
        announce: called with a line per stage.

    Returns:
        The report.

    Raises:
        DiffLoRAError: a model is missing, or no face is found.
    """
    watch = Stopwatch(announce)
    with watch.stage("draw the reference photos"):
        traits = sample_people("test", person, NUM_PEOPLE)  # (people, traits)
        portraits = cat_scenes([scene_with(REFERENCE_PHRASES)] * NUM_PEOPLE)
        photos = [to_image(photo) for photo in render(traits, portraits, PHOTO_PX).pictures * 2 - 1]
        atomic_save(out / "reference.png", photos[0].save)
    with watch.stage("load models"):
        model = DiffLoRA.load(device=device)
        base = BaseModel.load(world.BASE_MODEL, device=device)
    with watch.stage("photo -> face -> features"):
        first: Photo = out / "reference.png"
        features = [model.encode([photo]) for photo in (first, *photos[1:])]
    with watch.stage("features -> LoRA (diffusion transformer, LAE)"):
        loras = [model.generate(own, seed=seed) for own in features]
        loras[0].save(out / "lora.safetensors")
    strength = model.recommended.strength if strength is None else strength

    scenes = cat_scenes([scene_with(phrases) for phrases in PROMPT_PHRASES])  # K scenes
    with watch.stage("pictures by the base model"):
        plain = draw(base, scenes, seed)  # (R*K, 3, H, W)
    personalised = []
    with watch.stage("pictures with the LoRAs"):
        for lora in (Lora.load(out / "lora.safetensors"), *loras[1:]):
            with apply_lora(base.denoiser, lora, strength):
                personalised.append(draw(base, scenes, seed))  # (R*K, 3, H, W)
    with watch.stage("judge"):
        judge, drawn = Judge.load(), cat_scenes([scenes] * PICTURES_PER_PROMPT)  # R*K scenes
        in_colour = drawn.style == 0  # (R*K,)
        measured = drawn[in_colour]  # n scenes
        people = []
        for index, pictures in enumerate(personalised):
            own = traits[index : index + 1]  # (1, traits)
            truth = render(own.expand(len(measured), -1), measured, PHOTO_PX).pictures * 2 - 1  # (n, 3, H, W)
            rows = {
                "base_model": plain[in_colour],
                "personalised": pictures[in_colour],
                "true_renders": truth,
            }
            people.append(PersonReport(person + index, *judge_rows(judge, own, measured, rows)))
    similarity = mean_of([one.identity_similarity for one in people])
    accuracy = mean_of([one.prompt_accuracy for one in people])
    report = DemoReport(seed, strength, scenes.prompts(), similarity, accuracy, people, watch.seconds)
    atomic_save(out / "grid.png", draw_demo(photos, scenes, plain, personalised, people).save)
    text = json.dumps(asdict(report), indent=2) + "\n"
    atomic_save(out / "report.json", lambda path: path.write_text(text, encoding="utf-8"))
    return report


def mean_of(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean over people of every row's value."""
    return {name: round(fmean(own[name] for own in rows), 3) for name in rows[0]}


def scene_with(phrases: Sequence[str]) -> Scene:
    """One neutral scene, but for what the phrases say."""
    named = {name: phrase for name, words in ATTRIBUTES.items() for phrase in phrases if phrase in words}
    return scene_for(1, None, **named)


@torch.no_grad()
def draw(base: BaseModel, scenes: Scene, seed: int) -> Tensor:
    """Pictures of the base model for the prompts of K scenes: (R*K, 3, H, W) in [-1, 1], K after K."""
    prompt_embeds = base.encode_prompts(scenes.prompts()).repeat(PICTURES_PER_PROMPT, 1, 1)  # (R*K, T, W)
    generator = torch.Generator().manual_seed(seed)
    noise = draw_noise((len(prompt_embeds), *base.latent_shape), generator, base.device)  # (R*K, C, h, w)
    latents = base.sample(prompt_embeds, noise, PICTURE_STEPS, world.PICTURE_GUIDANCE)  # (R*K, C, h, w)
    return base.decode(latents)  # (R*K, 3, H, W)


def judge_rows(
    judge: Judge, traits: Tensor, scenes: Scene, rows: dict[str, Tensor]
) -> tuple[dict[str, float], dict[str, float]]:
    """Mean identity similarity and prompt accuracy of rows of pictures (K, 3, H, W) of one person."""
    targets = judge.targets(traits)  # (1, E)
    similarity, accuracy = {}, {}
    for name, pictures in rows.items():
        pictures = pictures.cpu()[None]  # (1, K, 3, H, W)
        similarity[name] = round(float(judge.similarity(pictures, targets).mean()), 3)
        right = torch.stack(list(judge.prompt_accuracy(pictures, scenes).values()))  # (attributes, 1, K)
        accuracy[name] = round(float(right.mean()), 3)
    return similarity, accuracy


def draw_demo(
    photos: list[Image.Image],
    scenes: Scene,
    plain: Tensor,
    personalised: list[Tensor],
    people: list[PersonReport],
) -> Image.Image:
    """The same prompts and noise by the base model, and for a few people beside their reference photos."""
    headings = [
        [phrase.removeprefix("wearing ") for phrase in phrases if phrase not in UNREMARKABLE]
        for phrases in scenes.phrases()
    ]
    rows = [SheetRow("base model", [None, *shown(plain, scenes)], ["nobody", "in particular"])]
    for photo, pictures, one in list(zip(photos, personalised, people, strict=True))[:SHOWN_PEOPLE]:
        details = ["one photo", f"likeness {one.identity_similarity['personalised']:.2f}"]
        rows.append(SheetRow("+ DiffLoRA", [photo, *shown(pictures, scenes)], details))
    return draw_grid([["reference photo"], *headings], rows, side=PHOTO_PX, label_width=112)


def shown(pictures: Tensor, scenes: Scene) -> list[Image.Image]:
    """The first picture of each of K prompts, of (R*K, 3, H, W)."""
    return [to_image(picture) for picture in pictures[: len(scenes)]]

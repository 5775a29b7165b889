"""The whole chain on one person whom no model has seen: reference photo -> LoRA -> pictures -> measures.

Letters: R pictures for each of K prompts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .base_model import BaseModel
from .diffusion import draw_noise
from .files import atomic_save
from .lora import Lora
from .model import DiffLoRA
from .patch import apply_lora
from .sheet import SheetRow, beside, draw_grid, to_image
from .synthetic import world
from .synthetic.judge import Judge
from .synthetic.people import sample_people
from .synthetic.renderer import PHOTO_PX, render
from .synthetic.scenes import ATTRIBUTES, Scene, cat_scenes, scene_for

PICTURE_STEPS = 16
"""Steps of the base model's sampler: more are not visibly better."""
PICTURES_PER_PROMPT = 4
"""What is measured; the first of each is shown. Six pictures alone are 36 attributes: one is 3 %."""
REFERENCE_PHRASES = ("smiling", "gray background", "blue shirt")
PROMPT_PHRASES = (
    ("neutral", "blue background", "white shirt"),
    ("smiling", "wearing sunglasses", "yellow background", "black shirt"),
    ("surprised", "facing left", "white background", "red shirt"),
    ("angry", "lit from the left", "red background", "green shirt"),
    ("smiling", "facing right", "wearing a hat", "green background", "purple shirt"),
    ("sad", "golden light", "gray background", "blue shirt"),
)
"""What the prompts ask for, over a neutral scene. None of them says what the person looks like."""

UNREMARKABLE = ("soft light", "facing forward")
"""Phrases that the headings of the picture leave out."""


@dataclass(frozen=True)
class DemoReport:
    """What the demo measured, as in `report.json`.

    Args:
        person: index in the test split, which nothing was trained on.
        seed: of the LoRA's sampler and of the pictures' noise.
        strength: multiplier of the LoRA.
        prompts: K prompts.
        identity_similarity: row -> mean cosine to the person by the evaluation recogniser.
        prompt_accuracy: row -> part of the prompts' attributes that the pictures show.
        seconds: stage -> wall-clock seconds.
    """

    person: int
    seed: int
    strength: float
    prompts: list[str]
    identity_similarity: dict[str, float]
    prompt_accuracy: dict[str, float]
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
    """Personalise the synthetic base model to one person and show what came of it.

    Writes `reference.png`, `lora.safetensors`, `grid.png` and `report.json`.

    Args:
        out: folder for the files; made if needed.
        person: index in the test split.
        seed: of the LoRA and of the pictures' noise, which base model and personalised model share.
        strength: multiplier of the LoRA; by default what the checkpoint recommends.
        device: where the networks run.
        announce: called with a line per stage.

    Returns:
        The report.

    Raises:
        DiffLoRAError: a model is missing, or no face is found.
    """
    watch = Stopwatch(announce)
    with watch.stage("draw the reference photo"):
        traits = sample_people("test", person, 1)  # (1, traits)
        photo = to_image(render(traits, scene_with(REFERENCE_PHRASES), PHOTO_PX).pictures[0] * 2 - 1)
        atomic_save(out / "reference.png", photo.save)
    with watch.stage("load models"):
        model = DiffLoRA.load(device=device)
        base = BaseModel.load(world.BASE_MODEL, device=device)
    with watch.stage("photo -> face -> features"):
        features = model.encode([out / "reference.png"])
    with watch.stage("features -> LoRA (diffusion transformer, LAE)"):
        model.generate(features, seed=seed).save(out / "lora.safetensors")
    strength = model.recommended.strength if strength is None else strength

    scenes = cat_scenes([scene_with(phrases) for phrases in PROMPT_PHRASES])  # K scenes
    with watch.stage("pictures by the base model"):
        plain = draw(base, scenes, seed)  # (R*K, 3, H, W)
    with (
        watch.stage("pictures with the LoRA"),
        apply_lora(base.denoiser, Lora.load(out / "lora.safetensors"), strength),
    ):
        personalised = draw(base, scenes, seed)  # (R*K, 3, H, W)
    with watch.stage("judge"):
        measured = cat_scenes([scenes] * PICTURES_PER_PROMPT)  # R*K scenes
        truth = render(traits.expand(len(measured), -1), measured).pictures * 2 - 1  # (R*K, 3, H, W)
        similarity, accuracy = judge_rows(
            traits, measured, {"base_model": plain, "personalised": personalised, "true_renders": truth}
        )
    report = DemoReport(person, seed, strength, scenes.prompts(), similarity, accuracy, watch.seconds)
    atomic_save(out / "grid.png", draw_demo(photo, scenes, plain, personalised, similarity).save)
    text = json.dumps(asdict(report), indent=2) + "\n"
    atomic_save(out / "report.json", lambda path: path.write_text(text, encoding="utf-8"))
    return report


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
    return base.decode(base.sample(prompt_embeds, noise, PICTURE_STEPS))  # (R*K, 3, H, W)


def judge_rows(
    traits: Tensor, scenes: Scene, rows: dict[str, Tensor]
) -> tuple[dict[str, float], dict[str, float]]:
    """Mean identity similarity and prompt accuracy of rows of pictures (K, 3, H, W) of one person."""
    judge = Judge.load()
    targets = judge.targets(traits)  # (1, E)
    similarity, accuracy = {}, {}
    for name, pictures in rows.items():
        pictures = pictures.cpu()[None]  # (1, K, 3, H, W)
        similarity[name] = round(float(judge.similarity(pictures, targets).mean()), 3)
        right = torch.stack(list(judge.prompt_accuracy(pictures, scenes).values()))  # (attributes, 1, K)
        accuracy[name] = round(float(right.mean()), 3)
    return similarity, accuracy


def draw_demo(
    photo: Image.Image, scenes: Scene, plain: Tensor, personalised: Tensor, similarity: dict[str, float]
) -> Image.Image:
    """The reference photo, and beside it the same prompts and noise without and with the LoRA."""
    headings = [
        [phrase.removeprefix("wearing ") for phrase in phrases if phrase not in UNREMARKABLE]
        for phrases in scenes.phrases()
    ]
    rows = []
    for label, name, pictures in (
        ("base model", "base_model", plain), ("+ DiffLoRA", "personalised", personalised)
    ):  # fmt: skip
        shown = [to_image(picture) for picture in pictures[: len(scenes)]]
        rows.append(SheetRow(label, shown, [f"likeness {similarity[name]:.2f}"]))
    reference = draw_grid([["one reference photo"]], [SheetRow("", [photo])], side=294, label_width=0)
    return beside(reference, draw_grid(headings, rows, side=144, label_width=112))

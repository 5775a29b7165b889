"""Trains the face models of the synthetic world; called by ``python -m training.train_world``.

Five stages, each resumable, ten to thirty CPU minutes: the detector and the recogniser of the face pack, the
recogniser of whole pictures that training for likeness asks as well, and the two judges (evaluation
recogniser, attribute classifier). Measures are on people of the validation split.

Letters: B pictures, P people, K pictures of one person, E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from difflora.faces import FaceAnalyzer
from difflora.model import EMBEDDED
from difflora.synthetic.attributes import AttributeClassifier, AttributeConfig
from difflora.synthetic.detector import DetectorConfig, FaceDetector
from difflora.synthetic.people import NUM_TRAITS
from difflora.synthetic.recognisers import (
    PICTURE_PX,
    EvaluationRecogniser,
    EvaluationRecogniserConfig,
    Recogniser,
    RecogniserConfig,
    align,
)
from difflora.synthetic.renderer import PHOTO_PX
from difflora.synthetic.scenes import COLOURFUL
from training.face_data import Pool, coarsen, compose, degrade, load_pool, shake
from training.face_export import export_detector, export_recogniser
from training.face_losses import angular_margin_loss, detector_loss, spread_loss
from training.face_measures import measure_detector, measure_recogniser
from training.steps import StepsConfig, run_steps, write_measures

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "world"
TRAIN_PEOPLE, TRAIN_PICTURES = 6000, 4
HELD_OUT_PEOPLE, HELD_OUT_PICTURES = 400, 6
PACK = Path("face_pack") / "models" / "synthetic"
"""In the weights folder: insightface finds it with root=face_pack, name=synthetic."""
PRESETS = {
    "attributes": StepsConfig(num_steps=3000, batch=64, learning_rate=3e-3, seed=3),
    "evaluation_recogniser": StepsConfig(num_steps=1000, batch=48, learning_rate=3e-3, seed=2),
    "recogniser": StepsConfig(num_steps=2700, batch=48, learning_rate=3e-3, seed=1),
    "portrait_recogniser": StepsConfig(num_steps=2400, batch=48, learning_rate=3e-3, seed=5),
    "detector": StepsConfig(num_steps=2800, batch=20, learning_rate=2e-3, seed=4),
}
"""Stage -> how it trains. The batch counts people for the recognisers, canvases for the detector, else
pictures."""
AnyRecogniser = TypeVar("AnyRecogniser", bound=nn.Module)
PORTRAIT = RecogniserConfig((24, 64, 128, 192), (2, 2, 2, 2), side=PICTURE_PX)
ATTRIBUTE_WEIGHT = {"expression": 4.0}
"""The others are learned within a hundred steps."""
STYLED = 0.3
"""Share of the attribute classifier's pictures that are sepia prints or sketches."""
NOT_ASKED = -100
"""Class that the loss leaves out: colours of a picture that has none."""
LANDMARK_JITTER = 0.01
"""Standard deviation in sides of the photo, of all landmarks together and once more of each: about what the
detector is off by."""
MARGIN = 0.35
"""Radians between pictures of one person and of others, reached after 40 % of the steps."""
SPREAD_WEIGHT = 4.0
TRAIT_WEIGHT = 15.0
"""Of reading the traits off the embedding. The margin alone is learned from skin and hair, not from shapes
of eyes, nose and mouth, which tell few people of a batch apart: see training/LOG.md."""


def _pools(out: Path, px: int, styled: float = 0.0) -> tuple[Pool, Pool]:
    folder = out.parent / "faces"
    return (
        load_pool(folder, "train", TRAIN_PEOPLE, TRAIN_PICTURES, px, styled),
        load_pool(folder, "validation", HELD_OUT_PEOPLE, HELD_OUT_PICTURES, px, styled),
    )


def train_attributes(
    out: Path = RUNS / "attributes",
    device: str = "cpu",
    weights: Path = EMBEDDED,
    config: StepsConfig = PRESETS["attributes"],
) -> dict[str, float]:
    """Attribute classifier -> ``weights/evaluation/attributes.safetensors``.

    Its measure is the accuracy per attribute. A style is read from every picture, colours only from colour
    photos.
    """
    train, held_out = _pools(out, PICTURE_PX, STYLED)
    without_colours = {name: train.classes["style"] != 0 for name in COLOURFUL}
    classes = {
        name: of.masked_fill(without_colours[name], NOT_ASKED) if name in COLOURFUL else of
        for name, of in train.classes.items()
    }
    torch.manual_seed(config.seed)
    model = AttributeClassifier(AttributeConfig(depth=2)).to(device, memory_format=torch.channels_last)

    def step(generator: torch.Generator, _: float) -> Tensor:
        index = torch.randint(len(train), (config.batch,), generator=generator)
        pictures = degrade(shake(train.unit(index), generator, pixels=1.0), generator)  # (B, 3, 64, 64)
        logits = model((pictures * 2 - 1).to(device, memory_format=torch.channels_last))
        losses = [
            ATTRIBUTE_WEIGHT.get(name, 1.0)
            * functional.cross_entropy(scores, classes[name][index].to(device), ignore_index=NOT_ASKED)
            for name, scores in logits.items()
        ]
        return torch.stack(losses).mean()

    run_steps(out, model, step, config)
    model.save(weights / "evaluation" / "attributes.safetensors")
    right: dict[str, list[Tensor]] = {name: [] for name in held_out.classes}
    for rows in torch.arange(len(held_out)).split(256):
        predicted = model.predict((held_out.unit(rows) * 2 - 1).to(device))
        for name, found in predicted.items():
            colourless = held_out.classes["style"][rows] != 0 if name in COLOURFUL else torch.tensor(False)
            shows = (found.cpu() == held_out.classes[name][rows]).float()
            right[name].append(shows.masked_fill(colourless, torch.nan))
    measures = {f"accuracy/{name}": torch.cat(parts).nanmean().item() for name, parts in right.items()}
    return write_measures(out, measures)


class _WithTraits(nn.Module):
    """A recogniser and, only while it learns, a linear reading of the traits from its unit embedding."""

    def __init__(self, recogniser: nn.Module, width: int) -> None:
        super().__init__()
        self.recogniser = recogniser
        self.traits = nn.Linear(width, NUM_TRAITS)

    def loss(self, inputs: Tensor, traits: Tensor, progress: float) -> Tensor:
        """Loss of (2 P, ...) inputs, the first pictures of all people and then the second ones."""
        embedding = functional.normalize(self.recogniser(inputs), dim=-1)  # (2 P, E)
        first, second = embedding.chunk(2)  # (P, E) twice
        # A margin from the start keeps the loss at the plateau of equal embeddings.
        margin = MARGIN * min(progress * 2.5, 1.0)
        identity = angular_margin_loss(first, second, margin=margin, scale=24.0)
        reading = functional.mse_loss(self.traits(embedding), traits)
        return identity + SPREAD_WEIGHT * spread_loss(first, second) + TRAIT_WEIGHT * reading


def _jittered(landmarks: Tensor, generator: torch.Generator) -> Tensor:
    each = torch.randn(landmarks.shape, generator=generator)  # (B, 5, 2)
    together = torch.randn(len(landmarks), 1, 2, generator=generator)  # (B, 1, 2)
    return landmarks + LANDMARK_JITTER * PHOTO_PX * (each + together)


def train_recogniser(
    out: Path = RUNS / "recogniser",
    device: str = "cpu",
    weights: Path = EMBEDDED,
    config: StepsConfig = PRESETS["recogniser"],
) -> dict[str, float]:
    """Conditioning recogniser -> ``recognition.onnx`` of the face pack.

    Its measure is the verification of unseen people.
    """
    train, held_out = _pools(out, PHOTO_PX)
    torch.manual_seed(config.seed)
    shape = RecogniserConfig()
    model = _WithTraits(Recogniser(shape), shape.width).to(device).to(memory_format=torch.channels_last)

    def step(generator: torch.Generator, progress: float) -> Tensor:
        index = torch.cat(train.pairs(config.batch, generator))  # (2 P,)
        pictures = degrade(coarsen(train.unit(index), generator), generator)  # (2 P, 3, 128, 128)
        crops = align(pictures, _jittered(train.landmarks[index], generator)) * 2 - 1  # (2 P, 3, 112, 112)
        crops = crops.to(device, memory_format=torch.channels_last)
        return model.loss(crops, train.traits[index].to(device), progress)

    run_steps(out, model, step, config)
    export_recogniser(model.recogniser, weights / PACK / "recognition.onnx")

    generator = torch.Generator().manual_seed(config.seed)

    def embed(rows: Tensor) -> Tensor:
        crops = align(held_out.unit(rows), _jittered(held_out.landmarks[rows], generator)) * 2 - 1
        return model.recogniser(crops.to(device))

    measures = measure_recogniser(embed, held_out)
    return write_measures(out, measures)


def train_evaluation_recogniser(
    out: Path = RUNS / "evaluation_recogniser",
    device: str = "cpu",
    weights: Path = EMBEDDED,
    config: StepsConfig = PRESETS["evaluation_recogniser"],
) -> dict[str, float]:
    """Recogniser that only judges -> ``weights/evaluation/recogniser.safetensors``. Measure: verification."""
    shape = EvaluationRecogniserConfig()
    model, measures = _train_on_whole_pictures(
        lambda: EvaluationRecogniser(shape), shape.width, out, PICTURE_PX, device, config
    )
    model.save(weights / "evaluation" / "recogniser.safetensors")
    return measures


def train_portrait_recogniser(
    out: Path = RUNS / "portrait_recogniser",
    device: str = "cpu",
    weights: Path = EMBEDDED,
    config: StepsConfig = PRESETS["portrait_recogniser"],
) -> dict[str, float]:
    """Recogniser that training for likeness shows whole pictures -> ``weights/portrait_recogniser.onnx``.

    It shares neither architecture nor seed with the one that judges. Measure: verification.
    """
    model, measures = _train_on_whole_pictures(
        lambda: Recogniser(PORTRAIT), PORTRAIT.width, out, PORTRAIT.side, device, config
    )
    export_recogniser(model, weights / "portrait_recogniser.onnx")
    return measures


def _train_on_whole_pictures(
    build: Callable[[], AnyRecogniser], width: int, out: Path, px: int, device: str, config: StepsConfig
) -> tuple[AnyRecogniser, dict[str, float]]:
    """Train what `build` makes on pictures (B, 3, px, px) in [-1, 1], E = `width`; and its verification."""
    train, held_out = _pools(out, px)
    torch.manual_seed(config.seed)
    recogniser = build()
    model = _WithTraits(recogniser, width).to(device).to(memory_format=torch.channels_last)

    def step(generator: torch.Generator, progress: float) -> Tensor:
        index = torch.cat(train.pairs(config.batch, generator))  # (2 P,)
        pictures = degrade(shake(train.unit(index), generator), generator) * 2 - 1  # (2 P, 3, px, px)
        pictures = pictures.to(device, memory_format=torch.channels_last)
        return model.loss(pictures, train.traits[index].to(device), progress)

    run_steps(out, model, step, config)
    measures = measure_recogniser(lambda rows: recogniser((held_out.unit(rows) * 2 - 1).to(device)), held_out)
    return recogniser, write_measures(out, measures)


def train_detector(
    out: Path = RUNS / "detector",
    device: str = "cpu",
    weights: Path = EMBEDDED,
    config: StepsConfig = PRESETS["detector"],
) -> dict[str, float]:
    """Face detector -> ``detection.onnx`` of the face pack.

    Its measures are recall, landmark error and false alarms, all through insightface.
    """
    train, held_out = _pools(out, PHOTO_PX)
    torch.manual_seed(config.seed)
    model = FaceDetector(DetectorConfig()).to(device).to(memory_format=torch.channels_last)

    def step(generator: torch.Generator, _: float) -> Tensor:
        return detector_loss(model, compose(train, config.batch, generator), device)

    run_steps(out, model, step, config)
    pack = weights / PACK
    export_detector(model, pack)
    if not (pack / "recognition.onnx").is_file():  # a pack needs both; the real one comes from its own stage
        raise FileNotFoundError(f"{pack} has no recogniser yet: run the recogniser stage first")
    measures = measure_detector(FaceAnalyzer(pack, providers=["CPUExecutionProvider"]), held_out)
    return write_measures(out, measures)


STAGES = {  # in this order: the detector's measures need the recogniser
    "attributes": train_attributes,
    "evaluation_recogniser": train_evaluation_recogniser,
    "recogniser": train_recogniser,
    "portrait_recogniser": train_portrait_recogniser,
    "detector": train_detector,
}

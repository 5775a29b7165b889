"""Train a library of LoRAs, many people at once, one shard file per batch; run it again to go on.

    python -m training.make_loras --people 512                     # the synthetic world
    python -m training.make_loras --people 64 --split validation   # other people, same library folder
    python -m training.make_loras --people 32 --split test --reference  # from one photo of each
    python -m training.make_loras --like CHECKPOINT --split test   # comparable with the checkpoint
    python -m training.make_loras --start CHECKPOINT --learning-rate 0.01 --out runs/loras_started
    python -m training.make_loras --start CHECKPOINT --learning-rate 0.01 --identity-weight 0.2 \
        --portrait-weight 0.4 --out FOLDER
    python -m training.make_loras --preset sdxl --base FOLDER --photos DIR  # one folder of photos per person

Letters: B people of a shard, n pictures of each, (C, h, w) image latents, (T, W) prompt embeddings.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

if not __package__:  # run as a file: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from difflora.base_model import BaseModel
from difflora.checkpoint import load_checkpoint
from difflora.errors import CheckpointError, DiffLoRAError
from difflora.faces import FaceAnalyzer
from difflora.features import IdentityFeatures, ImageEncoder, encode_photos
from difflora.files import load_safetensors, save_safetensors
from difflora.layout import LoraLayout, SharedDown, init_shared_down
from difflora.lora_training import (
    LoraTrainingConfig,
    Objective,
    Progress,
    denoising_objective,
    learn_shared_down,
    train_loras,
)
from difflora.model import DiffLoRA
from difflora.photos import as_arrays
from difflora.synthetic import world
from difflora.synthetic.renderer import PHOTO_PX
from training.base_presets import TARGETS
from training.common import MetricsWriter, digest_of, open_run, polite_interruption, progress_bar, say
from training.evaluation_people import (
    NUM_PHOTOS,
    SPARE_PHOTOS,
    ReferencePhotos,
    face_models,
    first_photos,
)
from training.identity_loss import IdentityLoss, View
from training.lora_library import (
    REFERENCE_SUFFIX,
    SHARED_DOWN_NAME,
    SPLITS,
    LibraryConfig,
    Shard,
    deal_shards,
)
from training.onnx_network import OnnxNetwork
from training.pictures import People, PhotoFolders, RenderedPeople
from training.presets import PRESETS, apply_options, config_options, preset


def training_pictures(
    base: BaseModel, people: People, indices: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures of B people, and what the base model makes of them.

    Returns:
        (B, n, 3, S, S) in [-1, 1], latents (B, n, C, h, w), and prompt embeddings: (n, T, W) if shared by
        all, else (B, n, T, W).
    """
    pictures, prompts = people.pictures(list(indices), base.picture_px)  # (B, n, 3, S, S)
    count = pictures.shape[1]
    latents = torch.cat([base.encode_images(own) for own in pictures])  # (B*n, C, h, w)
    if all(own == prompts[0] for own in prompts):
        prompts = prompts[:1]
    embeds = torch.cat([base.encode_prompts(own) for own in prompts]).unflatten(
        0, (-1, count)
    )  # (1 or B, n, T, W)
    embeds = (embeds[0] if len(embeds) == 1 else embeds).float()
    return pictures, latents.unflatten(0, (-1, count)).float(), embeds


def prepare_shared_down(
    folder: Path,
    base: BaseModel,
    layout: LoraLayout,
    people: People,
    making: LibraryConfig,
    seed: int,
    given: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The library's `lora_down`: read if it exists, else the given one, drawn or learned, and saved."""
    path = folder / SHARED_DOWN_NAME
    if path.is_file():
        return load_safetensors(path)[0]
    if given is not None:
        down = {name: factor.cpu() for name, factor in given.items()}
    elif making.down == "learned":
        if isinstance(people, RenderedPeople):
            people = dataclasses.replace(people, split="train")  # whatever split comes first
        teachers = making.down_people
        if isinstance(people, PhotoFolders):
            teachers = min(teachers, len(people))
        _, latents, prompts = training_pictures(base, people, range(teachers))
        config = dataclasses.replace(making.training(), num_steps=making.down_steps)
        generator = torch.Generator().manual_seed(seed)
        with progress_bar(making.down_steps, "lora_down") as bar:
            progress = show_loss(bar, move=True)
            down = learn_shared_down(base, layout, latents, prompts, config, generator, seed, progress)
    else:
        down = init_shared_down(layout, seed)
    save_safetensors(path, down)
    return down


def open_start(options: argparse.Namespace, layout: LoraLayout) -> DiffLoRA | None:
    """The checkpoint whose predictions training starts from, if one is asked for.

    Raises:
        CheckpointError: its LoRAs are not those that the library would hold.
    """
    if options.start is None:
        return None
    model = DiffLoRA.load(options.start, options.face_pack, options.image_encoder, options.device)
    check_layout(options.start, model.layout, layout)
    return model


def given_down(options: argparse.Namespace, layout: LoraLayout, start: DiffLoRA | None) -> SharedDown | None:
    """`lora_down` of the checkpoint that training starts from or that the library is for; None: of its own.

    Raises:
        CheckpointError: the checkpoint's LoRAs are not those that the library would hold.
    """
    if start is not None:
        return start.shared_down
    if options.like is None:
        return None
    checkpoint = load_checkpoint(options.like)
    check_layout(options.like, checkpoint.layout, layout)
    return checkpoint.shared_down


def check_layout(path: Path, has: LoraLayout, wanted: LoraLayout) -> None:
    """Refuse a checkpoint whose LoRAs are not the library's.

    Raises:
        CheckpointError: says what to give.
    """
    if has.fingerprint != wanted.fingerprint:
        raise CheckpointError(
            f"LoRAs of {path} touch other modules or have another rank than the library's: "
            "give --targets and --rank of the checkpoint, and its --base"
        )


def first_features(
    encoders: tuple[FaceAnalyzer, ImageEncoder], people: People, indices: Sequence[int], size: int
) -> list[IdentityFeatures]:
    """Features of the first pictures of each person in which a face is found, at most `NUM_PHOTOS`.

    Raises:
        NoFaceError: there is none among the first ones.
    """
    pictures, _ = people.pictures(list(indices), size)  # (B, n, 3, S, S)
    shown = [as_arrays(own[: NUM_PHOTOS + SPARE_PHOTOS]) for own in pictures]
    features = [encode_photos(photos, *encoders, on_missing="skip") for photos in shown]
    return [first_photos(found, NUM_PHOTOS) for found in features]


def open_likeness(
    options: argparse.Namespace, identity_weight: float, portrait_weight: float
) -> tuple[Callable[[Tensor], Objective] | None, dict[str, Any]]:
    """What is trained for beside the base model's loss, and what a run folder's config says of it.

    Returns:
        A function that makes the objective of a batch of people from their pictures, None without a weight;
        and the weights with digests of their recognisers, empty without a weight.
    """
    if not identity_weight and not portrait_weight:
        return None, {}
    analyzer, views, says = FaceAnalyzer(options.face_pack), [], {}
    if identity_weight:
        views.append(View(OnnxNetwork(analyzer.recogniser_file), identity_weight))
        says["identity_weight"] = identity_weight
        says["identity_recogniser"] = digest_of(analyzer.recogniser_file)
    if portrait_weight:
        views.append(View(OnnxNetwork(options.portrait_recogniser), portrait_weight, aligned=False))
        says["portrait_weight"] = portrait_weight
        says["portrait_recogniser"] = digest_of(options.portrait_recogniser)
    return lambda pictures: IdentityLoss.of(views, analyzer, pictures).to(options.device), says


def make_shards(
    shards: Sequence[Shard],
    base: BaseModel,
    layout: LoraLayout,
    shared_down: Mapping[str, Tensor],
    people: People,
    config: LoraTrainingConfig,
    seed: int,
    position: int = 0,
    start: DiffLoRA | None = None,
    likeness: Callable[[Tensor], Objective] | None = None,
) -> int:
    """Train and write the shards that are not there yet; a kill loses at most the one in flight.

    Args:
        shards: of this worker.
        base: frozen base model.
        layout: of the LoRAs.
        shared_down: module -> (R, in).
        people: their pictures.
        config: see `LoraTrainingConfig`.
        seed: of noise and times, the same for every shard.
        position: line of the progress bar, when several workers share a terminal.
        start: training starts from its predictions; None starts from the base model itself.
        likeness: pictures (B, n, 3, S, S) -> what is trained for; None is the base model's loss alone.

    Returns:
        Number of LoRAs written.
    """
    written = 0
    missing = [shard for shard in shards if not shard.is_done()]
    total = sum(len(shard.people) for shard in shards)
    done = total - sum(len(shard.people) for shard in missing)
    with progress_bar(total, "LoRAs", done, position) as bar, polite_interruption() as interrupted:
        for shard in missing:
            started = time.monotonic()
            losses: list[float] = []
            show = show_loss(bar)

            def report(
                step: int, num_steps: int, loss: float, show: Progress = show, to: list = losses
            ) -> None:
                show(step, num_steps, loss)
                to.append(loss)

            pictures, latents, prompts = training_pictures(base, people, shard.people)
            # The same seed for every shard: all people of the library see the same noise and times.
            generator = torch.Generator().manual_seed(seed)
            initial = None
            if start is not None:
                size = max(PHOTO_PX, base.picture_px)
                features = first_features(face_models(start), people, shard.people, size)
                initial = start.generate_weights(features)  # (B, P)
            objective = denoising_objective if likeness is None else likeness(pictures)
            flat = train_loras(
                base, layout, latents, prompts, config, generator, shared_down, initial, report, objective
            )
            tensors = {"flat_weights": flat.cpu(), "people": torch.tensor(shard.people)}  # (B, P), (B,)
            save_safetensors(shard.path, tensors, {"layout_fingerprint": layout.fingerprint})
            tail = losses[-max(1, len(losses) // 4) :]
            with MetricsWriter(shard.path.parent / f"metrics-{position}.jsonl") as metrics:
                metrics.write(shard.number, loss=sum(tail) / len(tail), seconds=time.monotonic() - started)
            bar.update(len(shard.people))
            written += len(shard.people)
            if interrupted():
                say("stopped after a whole shard: run the same command again to go on")
                break
    return written


def show_loss(bar: tqdm, move: bool = False) -> Progress:
    """Progress callback that shows step and loss beside a bar, and moves it if the bar counts steps."""

    def show(step: int, num_steps: int, loss: float) -> None:
        bar.set_postfix_str(f"step {step}/{num_steps} loss {loss:.4f}", refresh=False)
        bar.update(1 if move else 0)

    return show


def run_workers(arguments: Sequence[str], workers: int) -> None:
    """Start one single-threaded process per worker, wait for all of them.

    Raises:
        DiffLoRAError: a worker failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    command = [sys.executable, "-m", "training.make_loras", *arguments]
    processes = [
        subprocess.Popen([*command, "--worker", f"{i}/{workers}"], env=environment) for i in range(workers)
    ]
    with (
        polite_interruption()
    ):  # a Ctrl-C reaches the workers too: they finish their shard, this process waits
        codes = [process.wait() for process in processes]
    if any(codes):
        raise DiffLoRAError(
            f"workers ended with {codes}: see their messages above, then run the command again"
        )


def parse_worker(text: str) -> tuple[int, int]:
    """Read `1/2` as (1, 2)."""
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 0/2 (this worker / number of workers)")
    return int(index), int(count)


def portrait_option(parser: argparse.ArgumentParser) -> None:
    """Add `--portrait-recogniser`; the default knows the synthetic world only."""
    parser.add_argument(
        "--portrait-recogniser",
        type=Path,
        default=world.PORTRAIT_RECOGNISER,
        help="for --portrait-weight: an ONNX file, RGB pictures in [-1, 1] to embeddings",
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.make_loras", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--preset", default="synthetic", help=", ".join(PRESETS))
    parser.add_argument(
        "--base", type=Path, help="diffusers pipeline folder (default: the synthetic world's)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/loras"), help="folder of the library")
    parser.add_argument(
        "--photos", type=Path, help="one folder of photos per person, instead of rendered people"
    )
    parser.add_argument("--split", choices=SPLITS, default="train", help="which rendered people")
    parser.add_argument(
        "--reference",
        action="store_true",
        help="train on the one photo that the evaluation shows to DiffLoRA, with the settings of the library",
    )
    parser.add_argument(
        "--start", type=Path, help="DiffLoRA checkpoint: train on from what it predicts, at a smaller rate"
    )
    parser.add_argument(
        "--like", type=Path, help="DiffLoRA checkpoint: take its lora_down, to compare LoRAs with its own"
    )
    parser.add_argument(
        "--face-pack", type=Path, default=world.FACE_PACK, help="for --reference, --start, --identity-weight"
    )
    portrait_option(parser)
    parser.add_argument(
        "--image-encoder", type=Path, default=world.IMAGE_ENCODER, help="of the checkpoint, for --start"
    )
    parser.add_argument("--people", type=int, default=320, help="how many people (with --photos: at most)")
    parser.add_argument("--seed", type=int, default=0, help="of scenes, noise and lora_down")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with one thread")
    parser.add_argument(
        "--worker", type=parse_worker, default=(0, 1), help="do only every n-th shard, e.g. 0/2"
    )
    config_options(parser, LibraryConfig)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Arguments, data, loop, save."""
    options = parse(arguments)
    people, count = open_people(options)
    base = BaseModel.load(preset(options.preset).file("base", options.base), options.device)
    run(base, people, count, options, arguments)


def library_config(options: argparse.Namespace) -> LibraryConfig:
    """The preset's settings, with what the options say instead."""
    return apply_options(preset(options.preset).lora_library, options)


def open_people(options: argparse.Namespace) -> tuple[People, int]:
    """The source of pictures and the number of people.

    Raises:
        DiffLoRAError: a base model of real pictures, and no photos.
    """
    making = library_config(options)
    pictures = making.pictures
    if options.photos is None and preset(options.preset).base is None:
        return RenderedPeople(options.split, pictures, options.seed, making.styled), options.people
    if making.styled:
        raise DiffLoRAError("--styled is about rendered people: put such pictures into --photos")
    if options.reference:
        raise DiffLoRAError("--reference is about the rendered people of the evaluation: leave it out")
    folders = PhotoFolders(preset(options.preset).file("photos", options.photos), pictures)
    return folders, min(options.people, len(folders))


def run(
    base: BaseModel, people: People, count: int, options: argparse.Namespace, arguments: Sequence[str] = ()
) -> None:
    """Open the library, then train its missing shards here or in worker processes."""
    making = library_config(options)
    layout = LoraLayout.from_model(base.denoiser, TARGETS[making.targets], making.rank)
    if making.checkpointing:
        base.denoiser.enable_gradient_checkpointing()
    config = making.training()
    learned = (making.down_people, making.down_steps) if making.down == "learned" else ()
    start = open_start(options, layout)
    given = given_down(options, layout, start)
    used = {name: digest_of(path) for name in ("start", "like") if (path := getattr(options, name))}
    likeness, sought = open_likeness(options, making.identity_weight, making.portrait_weight)
    folder = open_run(
        options.out,
        {
            "base_model": base.name,
            "base_model_fingerprint": base.fingerprint,
            "layout": layout.to_json(),
            "training": dataclasses.asdict(config),
            "people": people.description(),
            "down": [making.down, *learned],
            "batch": making.batch,
            "seed": options.seed,
            **used,
            **sought,
        },
    )
    shared_down = prepare_shared_down(folder, base, layout, people, making, options.seed, given)
    if options.workers > 1 and options.worker == (0, 1):
        run_workers(arguments, options.workers)
        return
    index, workers = options.worker
    split = options.split
    if options.reference:
        people, split = ReferencePhotos(split, FaceAnalyzer(options.face_pack)), split + REFERENCE_SUFFIX
    shards = deal_shards(folder, split, count, making.batch)[index::workers]
    make_shards(shards, base, layout, shared_down, people, config, options.seed, index, start, likeness)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except DiffLoRAError as error:
        sys.exit(f"error: {error}")

"""Many people at once: a folder of photos per person in, a LoRA file per person out, resumable.

What is done is not done again: a file's header has a hash of all that went into it (photos, networks,
settings), and a person whose file has the right one is skipped. So a run that was stopped, or for which
photos were added, is simply started again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .diffusion import Progress
from .errors import CheckpointError, DiffLoRAError, PhotoError
from .files import load_safetensors
from .lora_keys import KeyStyle
from .lora_metadata import TITLE_KEY
from .model import DiffLoRA

CONTENT_KEY = "difflora.content_hash"
PHOTO_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
LORA_SUFFIX = ".safetensors"
Outcome = Literal["made", "up to date", "failed"]


@dataclass(frozen=True)
class BatchSettings:
    """How every LoRA of a batch is made; None is the checkpoint's recommendation.

    Args:
        seed: of the LoRA's sampler.
        num_steps: as for `DiffLoRA.generate`, and so are the next two.
        guidance_scale: how much the photos count.
        noise_scale: how much the seed counts.
        key_style: of the files, see `lora_keys`; not "peft", which needs a folder for each LoRA.
        sidecar: whether to write a JSON for LoRA Manager beside each file.
    """

    seed: int = 0
    num_steps: int | None = None
    guidance_scale: float | None = None
    noise_scale: float | None = None
    key_style: KeyStyle = "kohya"
    sidecar: bool = False


@dataclass(frozen=True)
class PersonResult:
    """What became of one person's folder.

    Args:
        person: name of the folder.
        outcome: "made" now, "up to date" from before, or "failed".
        reason: one sentence for people.
        path: the LoRA file; None after a failure.
    """

    person: str
    outcome: Outcome
    reason: str
    path: Path | None = None

    def __str__(self) -> str:
        """One line of a report."""
        return f"{self.person}: {self.outcome}, {self.reason}"


def find_people(folder: str | Path) -> dict[str, list[Path]]:
    """Photos of each person: one folder per person, whose name is the person's.

    Args:
        folder: what the people's folders lie in; hidden ones, and files beside them, are passed over.

    Returns:
        Person -> photos, both sorted by name; a person's list may be empty.

    Raises:
        PhotoError: there is no such folder, or no folder in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PhotoError(f"no folder {folder}: make it, and put a folder of photos into it for each person")
    people = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not people:
        raise PhotoError(f"{folder} has no folders in it: put each person's photos into one of their own")
    return {
        person.name: sorted(
            path
            for path in person.iterdir()
            if path.suffix.lower() in PHOTO_SUFFIXES and not path.name.startswith(".")
        )
        for person in people
    }


def personalize_folders(
    model: DiffLoRA,
    people: Mapping[str, Sequence[Path]],
    out: str | Path,
    settings: BatchSettings | None = None,
    progress: Progress | None = None,
    announce: Callable[[PersonResult], None] = lambda result: None,
) -> list[PersonResult]:
    """Make a LoRA file of each person who has none of just these photos yet; one failure stops nobody.

    Args:
        model: with face models.
        people: from `find_people`.
        out: folder for `<person>.safetensors`; made if needed.
        settings: how to make them; all by default.
        progress: called with (steps done, steps of all people) while sampling; raise from it to stop. What
            was finished before stays.
        announce: called with each result as it comes.

    Returns:
        Results in the order of the people.

    Raises:
        DiffLoRAError: a key style or settings that no LoRA can be made with.
        FaceModelError: the model was loaded without face models.
    """
    settings = _resolve(model, settings or BatchSettings())
    networks = networks_hash(model)
    results: list[PersonResult] = []
    steps = settings.num_steps or 1

    def step(done: int, _: int) -> None:
        if progress is not None:
            progress(len(results) * steps + done, len(people) * steps)

    for person, photos in people.items():
        path = Path(out) / f"{person}{LORA_SUFFIX}"
        try:
            result = _personalize(model, networks, person, photos, path, settings, step)
        except (PhotoError, CheckpointError, OSError) as error:  # of this person's files
            result = PersonResult(person, "failed", str(error))
        step(steps, steps)  # also for those who took none
        results.append(result)
        announce(result)
    return results


def _personalize(
    model: DiffLoRA,
    networks: str,
    person: str,
    photos: Sequence[Path],
    path: Path,
    settings: BatchSettings,
    progress: Progress,
) -> PersonResult:
    if not photos:
        raise PhotoError(f"no photos in its folder: put some there ({', '.join(sorted(PHOTO_SUFFIXES))})")
    content = content_hash(networks, photos, settings)
    found = _header(path)
    if found is not None and CONTENT_KEY not in found:
        raise CheckpointError(f"{path} exists, but was not made from a folder: rename it, or the folder")
    if found is not None and found[CONTENT_KEY] == content:
        return PersonResult(person, "up to date", f"{path.name} was made of these photos before", path)
    features = model.encode(photos)
    lora = model.generate(
        features,
        settings.seed,
        settings.num_steps,
        settings.guidance_scale,
        settings.noise_scale,
        progress,
    )
    lora = replace(lora, metadata={**lora.metadata, TITLE_KEY: person, CONTENT_KEY: content})
    lora.save(path, key_style=settings.key_style, sidecar=settings.sidecar)
    used = sum(face.used for face in features.faces)
    return PersonResult(person, "made", f"{path.name} from {used} of {len(photos)} photos", path)


def _resolve(model: DiffLoRA, settings: BatchSettings) -> BatchSettings:
    """The settings with the checkpoint's recommendations in place of None."""
    if settings.key_style == "peft":
        raise DiffLoRAError("peft wants a folder for each LoRA: choose another key style for a batch")
    recommended = asdict(model.recommended)
    missing = {name: recommended[name] for name, value in asdict(settings).items() if value is None}
    return replace(settings, **missing)


def networks_hash(model: DiffLoRA) -> str:
    """SHA-256 of everything in a model that photos go through: equal exactly if the same LoRAs come out.

    Args:
        model: on any device.

    Returns:
        Hex digits.
    """
    digest = hashlib.sha256()
    checkpoint = model.checkpoint
    names = (checkpoint.base_model, checkpoint.face_pack, checkpoint.image_encoder)
    config = asdict(checkpoint.networks.config)
    digest.update(json.dumps([checkpoint.layout.to_json(), names, config]).encode())
    tensors: dict[str, Tensor] = {f"down.{name}": t for name, t in (model.shared_down or {}).items()}
    for part, network in model.networks.items():
        tensors |= {f"{part}.{name}": tensor for name, tensor in network.state_dict().items()}
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def content_hash(networks: str, photos: Sequence[Path], settings: BatchSettings) -> str:
    """SHA-256 of all that one LoRA file is made of; photos count by what is in them, not by name or date.

    Args:
        networks: from `networks_hash`.
        photos: files.
        settings: without None.

    Returns:
        Hex digits.
    """
    files = sorted(hashlib.sha256(photo.read_bytes()).hexdigest() for photo in photos)
    text = json.dumps([networks, files, asdict(settings)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _header(path: Path) -> dict[str, str] | None:
    """String metadata of a LoRA file, None if there is none.

    Raises:
        CheckpointError: it is damaged.
    """
    return load_safetensors(path)[1] if path.exists() else None

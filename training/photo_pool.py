"""Photos of many people, as training needs them: features, picture latents and prompts, computed once.

Letters: M people, F photos of each, C feature width, (Cl, h, w) a picture's latent, U prompts, L prompt
tokens, W text width, B rows, N reference photos, K pictures.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from difflora.base_model import BaseModel
from difflora.errors import NoFaceError
from difflora.features import FaceAnalyzer, ImageEncoder, crop_face
from difflora.files import load_safetensors, save_safetensors
from difflora.photos import as_arrays
from difflora.synthetic.people import sample_people
from difflora.synthetic.renderer import PHOTO_PX, render
from difflora.synthetic.scenes import sample_scenes
from training.common import open_run, progress_bar
from training.pictures import People

SHARD_PEOPLE = 64
SHARD_PIXELS = (
    2**25
)  # of one shard's photos: 400 MB as float32; 64 people of eight small photos stay one shard
NUM_SCENES = 1024  # distinct scenes: their prompts are embedded once; common random numbers for everybody


@dataclass(frozen=True, eq=False)
class PhotoPool:
    """F photos of each of M people.

    Args:
        people: (M,) int64 index of the person in its split.
        face: (M, F, 512) face embeddings, zero where no face was found.
        image: (M, F, C) image features, zero where no face was found.
        valid: (M, F) bool, whether a face was found.
        image_latents: (M, F, Cl, h, w) of the base model; (M, F, 0, 0, 0) without pictures.
        prompt_index: (M, F) int64 into prompt_embeds.
        prompt_embeds: (U, L, W) of the base model.
    """

    people: Tensor
    face: Tensor
    image: Tensor
    valid: Tensor
    image_latents: Tensor
    prompt_index: Tensor
    prompt_embeds: Tensor

    def __len__(self) -> int:
        """Number of people M."""
        return len(self.people)

    def to(self, device: torch.device | str) -> "PhotoPool":
        """The same pool on a device."""
        return replace(self, **{entry.name: getattr(self, entry.name).to(device) for entry in fields(self)})

    def select(self, rows: Tensor) -> "PhotoPool":
        """The pool of some of the people, (M',) rows; prompts are shared."""
        per_person = [entry.name for entry in fields(self) if entry.name != "prompt_embeds"]
        return replace(self, **{name: getattr(self, name)[rows] for name in per_person})

    def references(self, rows: Tensor, photos: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features of chosen photos for MIF: rows (B,), photos (B, N), mask (B, N) -> face, image, mask."""
        face, image = (
            self.face[rows[:, None], photos],
            self.image[rows[:, None], photos],
        )  # (B, N, 512), (B, N, C)
        return face.float(), image.float(), mask

    def pictures(self, rows: Tensor, photos: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (B,), photos (B, K) -> image latents (B*K, Cl, h, w), prompt embeddings (B*K, L, W)."""
        latents = self.image_latents[rows[:, None], photos].flatten(0, 1)  # (B*K, Cl, h, w)
        prompts = self.prompt_embeds[self.prompt_index[rows[:, None], photos].flatten()]  # (B*K, L, W)
        return latents.float(), prompts.float()


def pool_photos(pool: PhotoPool, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Features of all photos with a face: (m, C) of people, and (m,) whose, as a number within `rows`."""
    rows = torch.arange(len(pool)) if rows is None else rows
    both = torch.cat([pool.face[rows], pool.image[rows]], dim=-1).float()  # (n, F, C)
    person, _ = pool.valid[rows].nonzero(as_tuple=True)  # (m,)
    return both[pool.valid[rows]], person


def choose_photos(
    valid: Tensor, max_photos: int, num_pictures: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw 1 .. max_photos reference photos per person, and pictures that are none of them.

    Args:
        valid: (B, F) bool, photos with a face.
        max_photos: N.
        num_pictures: K; with N + K <= F references and pictures are disjoint.
        generator: on the CPU.

    Returns:
        references (B, N), mask (B, N) of those that count, pictures (B, K): indices of photos on valid's
        device.
    """
    batch, num_photos = valid.shape
    score = (
        torch.rand(batch, num_photos, generator=generator).to(valid.device) + 2.0 * ~valid
    )  # (B, F); no face: last
    order = score.argsort(dim=1)  # (B, F)
    references = order[:, :max_photos]  # (B, N)
    count = torch.randint(1, max_photos + 1, (batch, 1), generator=generator).to(valid.device)  # (B, 1)
    mask = torch.arange(references.shape[1], device=valid.device) < count  # (B, N)
    return references, mask & valid.gather(1, references), order[:, num_photos - num_pictures :]


@dataclass(frozen=True)
class ScatteredPeople:
    """Rendered people (a `People`), each in scenes of their own out of `NUM_SCENES`, so that prompts repeat.

    Args:
        split: "train", "validation" or "test".
        pictures_per_person: F.
        seed: of the scenes.
    """

    split: str
    pictures_per_person: int
    seed: int = 0

    def description(self) -> dict[str, Any]:
        """What decides the pictures."""
        return {
            "source": "scattered",
            "split": self.split,
            "photos": self.pictures_per_person,
            "seed": self.seed,
        }

    def pictures(self, indices: list[int], size: int) -> tuple[Tensor, list[list[str]]]:
        """Pictures (m, F, 3, S, S) in [-1, 1] and m lists of F prompts."""
        count = self.pictures_per_person
        generators = [torch.Generator().manual_seed(self.seed * 1_000_003 + index) for index in indices]
        chosen = torch.stack(
            [torch.randint(NUM_SCENES, (count,), generator=own) for own in generators]
        )  # (m, F)
        scenes = sample_scenes(NUM_SCENES, self.seed)[chosen.flatten()]  # m * F scenes
        traits = torch.cat([sample_people(self.split, index, 1) for index in indices])  # (m, traits)
        pictures = render(traits.repeat_interleave(count, dim=0), scenes, size).pictures  # (m*F, 3, S, S)
        return pictures.unflatten(0, (-1, count)) * 2 - 1, batches(scenes.prompts(), count)


def build_pool(
    folder: Path,
    people: People,
    count: int,
    base: BaseModel,
    face_analyzer: FaceAnalyzer,
    image_encoder: ImageEncoder,
    with_pictures: bool = True,
) -> PhotoPool:
    """Compute everything about the photos of people 0 .. count - 1; resumable shard by shard.

    Args:
        folder: cache; finished shards of an earlier run are used again.
        people: where the pictures come from.
        count: M.
        base: encodes pictures and prompts.
        face_analyzer: face embeddings.
        image_encoder: image features.
        with_pictures: whether to encode the pictures for the base model: needed for the image loss only, and
            most of the memory (32 KB for a picture of SD 1.5, features 3 KB).

    Returns:
        The pool, float16, on the CPU.

    Raises:
        CheckpointError: the folder caches other people, or features of other models.
    """
    size = base.picture_px
    photo_size = max(size, PHOTO_PX)
    models = {
        "photo_px": photo_size,
        "encoders": base.encoders_fingerprint,
        "face_pack": face_analyzer.name,
        "image_encoder": image_encoder.folder.name,
        **({"image_grid": image_encoder.grid} if image_encoder.grid else {}),
    }
    only = {} if with_pictures else {"pictures": False}
    open_run(folder, {"people": people.description(), **models, **only})
    bar = progress_bar(count, f"photos ({folder.name})")
    shards, prompts = [], []
    step = min(SHARD_PEOPLE, max(1, SHARD_PIXELS // (people.pictures_per_person * photo_size**2)))
    for start in range(0, count, step):
        indices = list(range(start, min(start + step, count)))
        path = folder / f"photos-{start:06d}-{len(indices)}.safetensors"
        if not path.is_file():
            with torch.no_grad():
                photos, texts = people.pictures(indices, photo_size)  # (m, F, 3, S', S')
                tensors = encode_photos(photos, face_analyzer, image_encoder)
                if with_pictures and size != photo_size:
                    photos = people.pictures(indices, size)[0]  # (m, F, 3, S, S)
                tensors["image_latents"] = encode_pictures(photos, base, with_pictures)
            save_safetensors(
                path, tensors | {"people": torch.tensor(indices)}, {"prompts": json.dumps(texts)}
            )
        tensors, metadata = load_safetensors(path)
        shards.append(tensors)
        prompts += [text for own in json.loads(metadata["prompts"]) for text in own]
        bar.update(len(indices))
    bar.close()
    joined = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
    distinct = sorted(set(prompts))
    numbers = {text: number for number, text in enumerate(distinct)}
    prompt_index = torch.tensor([numbers[text] for text in prompts]).reshape(joined["valid"].shape)  # (M, F)
    embeds = torch.cat(
        [base.encode_prompts(part).half().cpu() for part in batches(distinct, 64)]
    )  # (U, L, W)
    return PhotoPool(prompt_index=prompt_index, prompt_embeds=embeds, **joined)


def encode_photos(
    photos: Tensor, face_analyzer: FaceAnalyzer, image_encoder: ImageEncoder
) -> dict[str, Tensor]:
    """Features of photos (m, F, 3, S', S') in [-1, 1]: face, image (m, F, ...) float16, valid (m, F)."""
    face, image, valid = photo_features(as_arrays(photos.flatten(0, 1)), face_analyzer, image_encoder)
    tensors = {"face": face.half(), "image": image.half(), "valid": valid}
    return {name: tensor.unflatten(0, photos.shape[:2]) for name, tensor in tensors.items()}


def encode_pictures(pictures: Tensor, base: BaseModel, with_pictures: bool = True) -> Tensor:
    """Latents (m, F, Cl, h, w), float16, of pictures (m, F, 3, S, S) in [-1, 1]; empty ones if unwanted."""
    people, count = pictures.shape[:2]
    if not with_pictures:
        return torch.zeros(people, count, 0, 0, 0, dtype=torch.float16)
    latents = base.encode_images(pictures.flatten(0, 1))  # (m*F, Cl, h, w)
    return latents.half().cpu().unflatten(0, (people, count))


def photo_features(
    photos: Sequence[np.ndarray], face_analyzer: FaceAnalyzer, image_encoder: ImageEncoder
) -> tuple[Tensor, Tensor, Tensor]:
    """Features of n photos: face (n, 512), image (n, C), valid (n,); zeros where no face is found."""
    valid = torch.zeros(len(photos), dtype=torch.bool)
    face, image = torch.zeros(len(photos), 512), torch.zeros(len(photos), image_encoder.width)
    try:
        embeddings, reports = face_analyzer.analyze(photos, on_missing="skip")  # (n', 512)
    except NoFaceError:
        return face, image, valid
    found = [report for report in reports if report.face is not None]
    index = torch.tensor([report.photo for report in found])  # (n',)
    face[index] = embeddings
    image[index] = image_encoder.encode(
        [crop_face(photos[r.photo], r.face) for r in found if r.face is not None]
    )
    valid[index] = True
    return face, image, valid


def batches(items: list[str], size: int) -> list[list[str]]:
    """Consecutive pieces of at most `size` items."""
    return [items[start : start + size] for start in range(0, len(items), size)]

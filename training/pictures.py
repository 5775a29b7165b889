"""Pictures of people for LoRA training: rendered people, or a folder of photos per person.

Letters: B people, n pictures of each, S picture size.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from difflora.errors import PhotoError
from difflora.photos import centre_square, load_photo
from difflora.synthetic.people import sample_people
from difflora.synthetic.renderer import render
from difflora.synthetic.scenes import ATTRIBUTES, Scene, sample_scenes

PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTION_SUFFIX = ".txt"


class People(Protocol):
    """Where the pictures of person number i come from."""

    @property
    def pictures_per_person(self) -> int:
        """How many pictures each person has, n."""

    def description(self) -> dict[str, Any]:
        """JSON values that say which people these are: a library is continued only with the same ones."""

    def pictures(self, indices: list[int], size: int) -> tuple[Tensor, list[list[str]]]:
        """Pictures (B, n, 3, S, S) in [-1, 1] and B lists of n prompts."""


@dataclass(frozen=True)
class RenderedPeople:
    """People of the synthetic world, all in the same n scenes, so that what differs is the person.

    Args:
        split: "train", "validation" or "test".
        pictures_per_person: n.
        seed: of the scenes.
        styled: share of the pictures, the last ones, that are in another style than a colour photo's, in each
            of these in turn.
    """

    split: str
    pictures_per_person: int
    seed: int = 0
    styled: float = 0.0

    def description(self) -> dict[str, Any]:
        """Without the split: the splits of one library share their scenes."""
        who = {"source": "rendered", "pictures_per_person": self.pictures_per_person, "seed": self.seed}
        return who | ({"styled": self.styled} if self.styled else {})

    def scenes(self) -> Scene:
        """The n scenes."""
        n = self.pictures_per_person
        place = torch.arange(n) - (n - round(self.styled * n))  # (n,), from 0 on where there is a style
        style = torch.where(place < 0, 0, 1 + place % (len(ATTRIBUTES["style"]) - 1))  # (n,)
        return replace(sample_scenes(n, self.seed), style=style)

    def pictures(self, indices: list[int], size: int) -> tuple[Tensor, list[list[str]]]:
        """See `People`."""
        n, scenes = self.pictures_per_person, self.scenes()
        traits = torch.cat([sample_people(self.split, index, 1) for index in indices])  # (B, traits)
        everybody = scenes[torch.arange(n).repeat(len(indices))]  # B * n scenes
        pictures = render(traits.repeat_interleave(n, dim=0), everybody, size).pictures  # (B*n, 3, S, S)
        return pictures.unflatten(0, (len(indices), n)) * 2 - 1, [scenes.prompts()] * len(indices)


@dataclass(frozen=True)
class PhotoFolders:
    """One folder of photos per person; a caption `x.txt` beside `x.png`, else the default caption.

    Args:
        root: folder with one folder per person.
        pictures_per_person: n; fewer photos are used again, of more the first n in the order of their names.
        default_caption: prompt of photos without a caption.

    Raises:
        PhotoError: no folders with photos.
    """

    root: Path
    pictures_per_person: int
    default_caption: str = "a photo of a person"

    def __post_init__(self) -> None:
        """Fail before the first LoRA, not at the last."""
        if not self.root.is_dir() or not self.folders():
            raise PhotoError(f"{self.root} has no folders with photos: make one folder per person in it")
        for folder in self.folders():
            if not photos_in(folder):
                raise PhotoError(
                    f"{folder} has no photos ({', '.join(PHOTO_SUFFIXES)}): add some or remove the folder"
                )

    def __len__(self) -> int:
        """Number of people."""
        return len(self.folders())

    def folders(self) -> list[Path]:
        """The people's folders in the order of their names."""
        return sorted(path for path in self.root.iterdir() if path.is_dir() and not path.name.startswith("."))

    def description(self) -> dict[str, Any]:
        """Names of the folders and photos: adding a photo makes another library."""
        names = [[folder.name, *(photo.name for photo in photos_in(folder))] for folder in self.folders()]
        return {
            "source": "photos",
            "pictures_per_person": self.pictures_per_person,
            "default_caption": self.default_caption,
            "photos": hashlib.sha256(str(names).encode()).hexdigest()[:16],
        }

    def pictures(self, indices: list[int], size: int) -> tuple[Tensor, list[list[str]]]:
        """See `People`."""
        folders = self.folders()
        pictures, prompts = [], []
        for index in indices:
            photos = photos_in(folders[index])
            chosen = [photos[k % len(photos)] for k in range(self.pictures_per_person)]
            pictures.append(
                torch.stack([centre_square(load_photo(photo), size) for photo in chosen])
            )  # (n, 3, S, S)
            prompts.append([self.caption(photo) for photo in chosen])
        return torch.stack(pictures), prompts  # (B, n, 3, S, S)

    def caption(self, photo: Path) -> str:
        """Text beside a photo."""
        path = photo.with_suffix(CAPTION_SUFFIX)
        return path.read_text(encoding="utf-8").strip() if path.is_file() else self.default_caption


@dataclass(frozen=True)
class SomePeople:
    """A few of many people, numbered anew from 0.

    Args:
        people: all of them.
        chosen: number of each in `people`.
    """

    people: People
    chosen: tuple[int, ...]

    @property
    def pictures_per_person(self) -> int:
        """See `People`."""
        return self.people.pictures_per_person

    def description(self) -> dict[str, Any]:
        """See `People`."""
        return {**self.people.description(), "chosen": list(self.chosen)}

    def pictures(self, indices: list[int], size: int) -> tuple[Tensor, list[list[str]]]:
        """See `People`."""
        return self.people.pictures([self.chosen[index] for index in indices], size)


def photos_in(folder: Path) -> list[Path]:
    """Photos of a folder in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PHOTO_SUFFIXES)

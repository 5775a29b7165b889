"""Folders of rendered people, as a user would have folders of photos.

Letters: N photos of one person.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ..files import atomic_save
from ..photos import as_arrays
from .people import sample_people
from .renderer import PHOTO_PX, render
from .scenes import sample_scenes


def save_photo_folders(
    folder: str | Path, num_people: int, num_photos: int, scene_seed: int = 0
) -> list[Path]:
    """Write `<folder>/person_<i>/photo_<scene_seed>_<j>.png`, people of the test split; what exists stays.

    Args:
        folder: made if needed.
        num_people: how many people, from the first on.
        num_photos: N photos of each.
        scene_seed: which expressions, poses, lights and clothes they show.

    Returns:
        The people's folders.
    """
    folders = []
    for person in range(num_people):
        folders.append(Path(folder) / f"person_{person}")
        paths = [folders[-1] / f"photo_{scene_seed}_{number}.png" for number in range(num_photos)]
        if all(path.is_file() for path in paths):
            continue
        traits = sample_people("test", person, 1).expand(num_photos, -1)  # (N, I)
        scenes = sample_scenes(num_photos, scene_seed + 1000 * person)
        pictures = render(traits, scenes, PHOTO_PX).pictures * 2 - 1  # (N, 3, H, W)
        for path, pixels in zip(paths, as_arrays(pictures), strict=True):
            atomic_save(path, Image.fromarray(pixels).save)
    return folders

"""Pictures for the face models: a pool of renders, degraded ones, canvases with several people.

Letters: B pictures, K pictures of one person, F faces on a canvas, L anchors, H x W pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from difflora.files import load_safetensors, save_safetensors
from difflora.synthetic.detector import FACE_SIDES, anchors
from difflora.synthetic.people import sample_people
from difflora.synthetic.renderer import render
from difflora.synthetic.scenes import ATTRIBUTES, sample_scenes

CANVAS_PX = 160
SLOTS = 3
"""Most people on one canvas."""
RENDER_BATCH = 64 * 8


@dataclass(frozen=True)
class Pool:
    """Renders of B = people x K pictures; picture i * K + k shows person i.

    Args:
        pictures: (B, 3, H, H) uint8.
        landmarks: (B, 5, 2) pixels.
        boxes: (B, 4) pixels.
        traits: (B, I) in [-1, 1].
        classes: attribute -> (B,) int64.
        per_person: K.
    """

    pictures: Tensor
    landmarks: Tensor
    boxes: Tensor
    traits: Tensor
    classes: dict[str, Tensor]
    per_person: int

    def __len__(self) -> int:
        """Number of pictures B."""
        return self.pictures.shape[0]

    def unit(self, index: Tensor) -> Tensor:
        """(n, 3, H, H) float pictures in 0 .. 1."""
        return self.pictures[index].float() / 255.0

    def pairs(self, num_people: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Indices (num_people,) of two different pictures of as many different people."""
        people = torch.randperm(len(self) // self.per_person, generator=generator)[:num_people]
        first = torch.randint(self.per_person, (num_people,), generator=generator)
        step = torch.randint(1, self.per_person, (num_people,), generator=generator)
        return people * self.per_person + first, people * self.per_person + (first + step) % self.per_person


def load_pool(
    folder: Path, split: str, num_people: int, per_person: int, px: int, styled: float = 0.0
) -> Pool:
    """Render a pool, or read it when the renderer has not changed since.

    Args:
        folder: where it is kept.
        split: of ``sample_people``.
        num_people: people ``0 .. num_people`` of the split.
        per_person: pictures K of each, every one in another scene.
        px: their side.
        styled: share of pictures that are no colour photos.
    """
    name = f"pool-{split}-{num_people}x{per_person}-{px}px{f'-styled{styled:g}' if styled else ''}"
    path = folder / f"{name}.safetensors"
    traits = sample_people(split, 0, num_people).repeat_interleave(per_person, 0)  # (B, I)
    # The splits draw different scenes too: a mark of the scene cannot pass for the person.
    scenes = sample_scenes(len(traits), seed=len(split), jitter=1.0, styled=styled)
    probe = render(traits[:8], scenes[:8], px)
    mark = hashlib.sha256((probe.pictures * 255).round().byte().numpy().tobytes()).hexdigest()[:16]
    if path.is_file():
        tensors, metadata = load_safetensors(path)
        if metadata.get("renderer") == mark:
            return _pool(tensors, traits, per_person)
    parts = []
    for start in tqdm(range(0, len(traits), RENDER_BATCH), desc=f"render {split}", unit_scale=RENDER_BATCH):
        part = render(traits[start : start + RENDER_BATCH], scenes[start : start + RENDER_BATCH], px)
        parts.append(((part.pictures * 255).round().byte(), part.landmarks, part.boxes))
    pictures, landmarks, boxes = (torch.cat(column) for column in zip(*parts, strict=True))
    tensors = {
        "pictures": pictures,
        "landmarks": landmarks,
        "boxes": boxes,
        **{name: getattr(scenes, name) for name in ATTRIBUTES},
    }
    save_safetensors(path, tensors, {"renderer": mark})
    return _pool(tensors, traits, per_person)


def _pool(tensors: dict[str, Tensor], traits: Tensor, per_person: int) -> Pool:
    classes = {name: tensors[name] for name in ATTRIBUTES}
    return Pool(tensors["pictures"], tensors["landmarks"], tensors["boxes"], traits, classes, per_person)


def _random(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low  # (count,)


def coarsen(pictures: Tensor, generator: torch.Generator, share: float = 0.3) -> Tensor:
    """A share of the pictures (B, 3, H, W) at half their resolution, as small photos are."""
    rows = torch.rand(len(pictures), generator=generator) < share  # (B,)
    half = functional.avg_pool2d(pictures, 2)  # (B, 3, H / 2, W / 2)
    full = functional.interpolate(half, scale_factor=2.0, mode="bilinear", align_corners=False)
    return torch.where(rows[:, None, None, None], full, pictures)  # (B, 3, H, W)


def degrade(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """What cameras, resizing and small diffusion models do: blur, noise, a little brightness.

    Args:
        pictures: (B, 3, H, W) in 0 .. 1.
        generator: source of chance.

    Returns:
        (B, 3, H, W) in 0 .. 1; about a third of the pictures are left almost as they are.
    """
    count = len(pictures)
    soft = functional.avg_pool2d(
        functional.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1
    )  # (B, 3, H, W)
    amount = _random(count, -0.4, 0.9, generator).clamp_min(0.0).view(-1, 1, 1, 1)
    noise = torch.randn(pictures.shape, generator=generator)  # (B, 3, H, W)
    level = _random(count, -0.03, 0.05, generator).clamp_min(0.0).view(-1, 1, 1, 1)
    gain = _random(count, 0.96, 1.04, generator).view(-1, 1, 1, 1)
    return ((pictures + amount * (soft - pictures)) * gain + level * noise).clamp(0.0, 1.0)


def shake(pictures: Tensor, generator: torch.Generator, pixels: float = 2.0) -> Tensor:
    """Move, turn and zoom whole pictures a little, (B, 3, H, W) -> (B, 3, H, W); edges are repeated."""
    count, side = len(pictures), pictures.shape[-1]
    angle, zoom = _random(count, -0.06, 0.06, generator), _random(count, 0.94, 1.06, generator)
    shift = (torch.rand(count, 2, generator=generator) * 2 - 1) * (2 * pixels / side)  # (B, 2)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    matrix = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=-1).view(-1, 2, 3)
    grid = functional.affine_grid(matrix, list(pictures.shape), align_corners=False)  # (B, H, W, 2)
    return functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def backdrops(count: int, side: int, generator: torch.Generator) -> Tensor:
    """(count, 3, side, side) in 0 .. 1 with nobody in them: flat, black, coarse or fine noise, gradients."""
    colour = torch.rand(count, 3, 1, 1, generator=generator)
    canvas = colour.expand(-1, -1, side, side).clone()
    kind = torch.randint(5, (count,), generator=generator)
    canvas[kind == 1] = 0.0
    for which, cells in ((2, 4), (3, 16), (4, side)):
        rows = kind == which
        noise = torch.rand(int(rows.sum()), 3, cells, cells, generator=generator)
        if len(noise):
            canvas[rows] = functional.interpolate(noise, (side, side), mode="bilinear", align_corners=False)
    return canvas


@dataclass(frozen=True)
class Canvases:
    """Pictures (B, 3, H, W) in 0 .. 1 with up to F faces.

    ``boxes`` (B, F, 4) and ``landmarks`` (B, F, 5, 2) are in pixels. ``state`` (B, F) is 1 for a face
    to find, 0 for no face, -1 for a hidden one that may be found or not.
    """

    pictures: Tensor
    boxes: Tensor
    landmarks: Tensor
    state: Tensor


def compose(pool: Pool, count: int, generator: torch.Generator, side: int = CANVAS_PX) -> Canvases:
    """Paste rendered people at random scales and places on backdrops.

    A third of the canvases are one whole picture, a third have several people, the rest nobody: empty ones,
    and pictures whose patches were shuffled so that they have all of a face but the face.

    Args:
        pool: where the people come from.
        count: number of canvases B.
        generator: source of chance.
        side: of the canvases in pixels, a multiple of 32.
    """
    canvas = backdrops(count, side, generator)  # (B, 3, H, W)
    mode = torch.rand(count, generator=generator)  # (B,)
    boxes, landmarks, state = (
        torch.zeros(count, SLOTS, 4),
        torch.zeros(count, SLOTS, 5, 2),
        torch.zeros(count, SLOTS),
    )
    line = torch.arange(side) + 0.5
    for slot in range(SLOTS):
        index = torch.randint(len(pool), (count,), generator=generator)
        pictures = coarsen(pool.unit(index), generator)  # (B, 3, px, px)
        px = pictures.shape[-1]
        shuffled = mode > 0.86
        pictures[shuffled] = _shuffle_patches(pictures[shuffled], generator)
        whole = (mode < 0.35) & (slot == 0)
        present = (
            whole
            | ((mode >= 0.35) & (mode < 0.78) & (torch.rand(count, generator=generator) < 0.75))
            | (shuffled & (slot < 2))
        )
        # faces of 22 .. 140 px: a face is about half of its picture
        scale = torch.exp(_random(count, -0.3, 1.35, generator)) * (64 / px) * (side / CANVAS_PX)  # (B,)
        scale = torch.where(whole, torch.full_like(scale, side / px), scale)
        room = side - scale * px * 0.7  # pictures may leave the canvas
        corner = (
            torch.rand(count, 2, generator=generator) * room[:, None] - 0.15 * scale[:, None] * px
        )  # (B, 2)
        corner = torch.where(whole[:, None], torch.zeros_like(corner), corner)
        axes = (line[None, :, None] - corner[:, None, :]) / scale[
            :, None, None
        ]  # (B, side, 2) picture pixels
        inside = ((axes > 0) & (axes < px)).float() * present[:, None, None]  # (B, side, 2)
        mask = (inside[:, :, 1, None] * inside[:, None, :, 0])[:, None]  # (B, 1, H, W)
        axes = axes / px * 2.0 - 1.0
        grid = torch.stack(
            [axes[:, None, :, 0].expand(-1, side, -1), axes[:, :, None, 1].expand(-1, -1, side)], dim=-1
        )
        pasted = functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
        canvas = canvas * (1.0 - mask) + pasted * mask  # (B, 3, H, W)
        covered = _covered(boxes, corner, scale * px) & present[:, None]  # (B, F)
        state = torch.where(covered & (state == 1.0), torch.full_like(state, -1.0), state)
        boxes[:, slot] = pool.boxes[index] * scale[:, None] + corner.repeat(1, 2)
        landmarks[:, slot] = pool.landmarks[index] * scale[:, None, None] + corner[:, None]
        state[:, slot] = torch.where(present & ~shuffled, _visibility(boxes[:, slot], side), state[:, slot])
    return Canvases(degrade(canvas, generator), boxes, landmarks, state)


def _shuffle_patches(pictures: Tensor, generator: torch.Generator, cells: int = 4) -> Tensor:
    count, _, side, _ = pictures.shape
    patch = side // cells
    patches = functional.unfold(pictures, patch, stride=patch)  # (B, 3 * patch^2, cells^2)
    order = torch.rand(count, 1, cells * cells, generator=generator).argsort(-1).expand_as(patches)
    return functional.fold(patches.gather(2, order), (side, side), patch, stride=patch)


def _covered(boxes: Tensor, corner: Tensor, side: Tensor) -> Tensor:
    """(B, F): whether a square pasted later hides more than a fifth of a box."""
    low = torch.maximum(boxes[..., :2], corner[:, None])  # (B, F, 2)
    high = torch.minimum(boxes[..., 2:], (corner + side[:, None])[:, None])  # (B, F, 2)
    overlap = (high - low).clamp_min(0.0).prod(-1)  # (B, F)
    return overlap > 0.2 * (boxes[..., 2:] - boxes[..., :2]).prod(-1)


def _visibility(boxes: Tensor, side: int) -> Tensor:
    """(B,): 1 when at least three quarters of a box lie on the canvas, else -1."""
    clipped = boxes.clamp(0.0, side)
    share = (clipped[:, 2:] - clipped[:, :2]).prod(-1) / (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return torch.where(share > 0.75, 1.0, -1.0)


@dataclass(frozen=True)
class AnchorTargets:
    """What each anchor should say.

    ``label`` (B, L) is 1 for a face, 0 for none, -1 for either; ``face`` (B, L) is the index of its face.
    """

    label: Tensor
    face: Tensor


def assign(canvases: Canvases) -> AnchorTargets:
    """Give each face the anchors of its size whose centres are nearest to its own.

    Anchors well inside a face that were not chosen may say anything, so that the border between two levels
    is soft.
    """
    height, width = canvases.pictures.shape[2:]
    centres, strides, kinds = anchors(height, width)  # (L, 2), (L,), (L,)
    boxes = canvases.boxes
    extent = boxes[..., 2:] - boxes[..., :2]  # (B, F, 2)
    side = extent.clamp_min(1e-3).prod(-1).sqrt()  # (B, F)
    kind = torch.bucketize(side, torch.tensor(FACE_SIDES))  # (B, F)
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2  # (B, F, 2)
    distance = (centres[None, None] - middle[:, :, None]).abs().amax(-1)  # (B, F, L)
    chosen = (distance < 0.8 * strides) & (kinds == kind[..., None])  # (B, F, L)
    near = (distance < torch.maximum(0.45 * side[..., None], 1.5 * strides)) & (
        (kinds - kind[..., None]).abs() <= 1
    )
    wanted, hidden = (canvases.state == 1)[..., None], (canvases.state == -1)[..., None]
    inside = distance < 0.6 * side[..., None]
    free = (near & wanted).any(1) | (inside & hidden).any(1)  # (B, L)
    positive = chosen & wanted  # (B, F, L)
    label = torch.where(positive.any(1), 1.0, torch.where(free, -1.0, 0.0))  # (B, L)
    nearest = torch.where(positive, distance, torch.full_like(distance, 1e6)).argmin(1)  # (B, L)
    return AnchorTargets(label, nearest)

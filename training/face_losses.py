"""Losses of the face models.

Letters: B pictures, P people, K pictures of one person, E embedding width, F faces, L anchors, I traits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from difflora.synthetic.detector import FaceDetector, anchors
from training.face_data import Canvases, assign


def angular_margin_loss(first: Tensor, second: Tensor, margin: float, scale: float) -> Tensor:
    """ArcFace (Deng et al. 2019, equation 3) with each person's other picture as the class centre.

    Every batch has new people, so that there is no table of classes to learn and no end of identities.

    Args:
        first: (P, E) unit rows.
        second: (P, E) unit rows of other pictures of the same people.
        margin: added to the angle between pictures of one person, in radians.
        scale: inverse temperature.

    Returns:
        The mean over both directions, a scalar.
    """
    cosine = (first @ second.T).clamp(-1 + 1e-6, 1 - 1e-6)  # (P, P)
    target = torch.arange(len(first), device=first.device)
    genuine = torch.cos(torch.acos(cosine.diagonal()) + margin)  # (P,)
    logits = scale * torch.where(
        torch.eye(len(first), dtype=torch.bool, device=first.device), genuine[:, None], cosine
    )
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def spread_loss(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared cosine of different people, as in "Learning Spread-out Local Feature Descriptors" (2017).

    Its reciprocal is the number of dimensions that the embeddings fill. The margin alone is content with few:
    7.5 were measured, where 33 traits make a person.

    Args:
        first: (P, E) unit rows.
        second: (P, E) unit rows of other pictures of the same people.

    Returns:
        A scalar.
    """
    embedding = torch.cat([first, second])  # (2 P, E)
    person = torch.arange(len(first), device=first.device).repeat(2)  # (2 P,)
    return (embedding @ embedding.T)[person[:, None] != person[None]].square().mean()


def detector_loss(detector: FaceDetector, canvases: Canvases, device: torch.device | str = "cpu") -> Tensor:
    """Focal loss on the scores, GIoU (Rezatofighi et al. 2019) on the boxes, L1 on the landmarks.

    Args:
        detector: in training mode.
        canvases: B canvases and what is on them, on the CPU.
        device: of the detector.

    Returns:
        A scalar: each part is averaged over the anchors that have a face.
    """
    height, width = canvases.pictures.shape[2:]
    targets = assign(canvases)
    pictures = ((canvases.pictures * 255.0 - 127.5) / 128.0).to(device, memory_format=torch.channels_last)
    levels = detector.levels(pictures)
    logits, distances, offsets = (
        torch.cat(part, 1).cpu() for part in zip(*levels, strict=True)
    )  # few numbers
    logits = logits[..., 0]  # (B, L)
    probability = logits.sigmoid()
    wrong = torch.where(targets.label == 1, 1.0 - probability, probability)  # (B, L)
    weight = wrong.square() * (targets.label >= 0)  # (B, L)
    entropy = functional.binary_cross_entropy_with_logits(
        logits, (targets.label == 1).float(), reduction="none"
    )
    rows, columns = (targets.label == 1).nonzero(as_tuple=True)  # (n,), (n,)
    count = max(len(rows), 1)
    score_loss = 2.0 * (weight * entropy).sum() / count

    centres, strides, _ = anchors(height, width)
    face = targets.face[rows, columns]
    boxes, landmarks = canvases.boxes[rows, face], canvases.landmarks[rows, face]  # (n, 4), (n, 5, 2)
    centre, stride = centres[columns], strides[columns][:, None]  # (n, 2), (n, 1)
    distance = distances[rows, columns] * stride  # (n, 4) pixels
    predicted = torch.cat([centre - distance[:, :2], centre + distance[:, 2:]], dim=-1)  # (n, 4)
    points = centre[:, None] + (offsets[rows, columns] * stride).view(-1, 5, 2)  # (n, 5, 2)
    side = (boxes[:, 2:] - boxes[:, :2]).prod(-1).sqrt()  # (n,)
    landmark_loss = ((points - landmarks).abs().mean((1, 2)) / side).sum() / count
    corner_loss = ((predicted - boxes).abs().mean(1) / side).sum() / count
    return (
        score_loss
        + (1.0 - generalised_iou(predicted, boxes)).sum() / count
        + 10.0 * landmark_loss
        + corner_loss
    )


def generalised_iou(first: Tensor, second: Tensor) -> Tensor:
    """GIoU of boxes (n, 4) x0 y0 x1 y1, pair by pair: (n,) in [-1, 1]."""
    low, high = torch.maximum(first[:, :2], second[:, :2]), torch.minimum(first[:, 2:], second[:, 2:])
    overlap = (high - low).clamp_min(0.0).prod(-1)  # (n,)
    area = (first[:, 2:] - first[:, :2]).clamp_min(0.0).prod(-1) + (second[:, 2:] - second[:, :2]).prod(-1)
    union = (area - overlap).clamp_min(1e-6)
    hull = torch.maximum(first[:, 2:], second[:, 2:]) - torch.minimum(first[:, :2], second[:, :2])
    hull_area = hull.clamp_min(0.0).prod(-1).clamp_min(1e-6)  # (n,)
    return overlap / union - (hull_area - union) / hull_area

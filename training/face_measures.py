"""Measures of the face models on people whom they have not seen.

Letters: B pictures, P people, K pictures of one person, E embedding width, F faces.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from difflora.faces import FaceAnalyzer
from training.face_data import Pool, backdrops, compose


def verification(embedding: Tensor, false_positive_rate: float = 1e-3) -> dict[str, float]:
    """How well a threshold on the cosine tells people apart, over all pairs of pictures.

    Args:
        embedding: (P, K, E) unit rows of P people.
        false_positive_rate: of pairs of different people.

    Returns:
        ``true_positive_rate`` at that threshold, the ``threshold``, and the mean cosines ``same`` and
        ``different``.
    """
    people, pictures, width = embedding.shape
    flat = embedding.reshape(-1, width)  # (P*K, E)
    cosine = flat @ flat.T  # (P*K, P*K)
    person = torch.arange(people, device=embedding.device).repeat_interleave(pictures)
    upper = torch.ones_like(cosine, dtype=torch.bool).triu(1)
    same_person = person[:, None] == person[None]
    same, different = cosine[upper & same_person], cosine[upper & ~same_person]
    place = len(different) - max(int(false_positive_rate * len(different)), 1)
    threshold = different.kthvalue(max(place, 1)).values
    return {
        "true_positive_rate": (same > threshold).float().mean().item(),
        "threshold": threshold.item(),
        "same": same.mean().item(),
        "different": different.mean().item(),
        "dimensions": 1.0 / different.square().mean().item(),
    }


@torch.no_grad()
def measure_recogniser(embed: Callable[[Tensor], Tensor], pool: Pool) -> dict[str, float]:
    """Verification of everybody in a pool.

    Args:
        embed: indices (n,) of pictures -> embeddings (n, E) of any length.
        pool: people that the recogniser has not seen.

    Returns:
        As ``verification``, and the number of people.
    """
    parts = [functional.normalize(embed(rows), dim=-1).cpu() for rows in torch.arange(len(pool)).split(256)]
    embedding = torch.cat(parts)  # (P * K, E)
    measures = verification(embedding.view(-1, pool.per_person, embedding.shape[-1]))
    return {"people": len(pool) // pool.per_person, **measures}


def measure_detector(analyzer: FaceAnalyzer, pool: Pool, count: int = 600) -> dict[str, float]:
    """Recall, landmark error and false alarms of a face pack, as users of insightface see them.

    Args:
        analyzer: the pack.
        pool: people that it has not seen.
        count: number of single portraits; a fifth as many canvases and empty pictures.
    """
    found, extra, errors = 0, 0, []
    embeddings, aligned = [], []
    rows = torch.arange(min(count, len(pool)))
    pictures = pool.pictures.permute(0, 2, 3, 1).numpy()  # (B, H, W, 3)
    for row in rows.tolist():
        faces = analyzer.detect(pictures[row])
        hit = bool(faces) and _iou(np.array(faces[0].box), pool.boxes[row].numpy()) > 0.5
        found, extra = found + hit, extra + (len(faces) > 1)
        if hit:
            difference = np.array(faces[0].landmarks) - pool.landmarks[row].numpy()  # (5, 2)
            errors.append(np.linalg.norm(difference, axis=1).mean() / pictures.shape[1])
            embeddings.append(analyzer.embed([pictures[row]], np.array([faces[0].landmarks])))
            aligned.append(analyzer.embed([pictures[row]], pool.landmarks[row : row + 1].numpy()))
    canvases = compose(pool, count // 5, torch.Generator().manual_seed(0), side=256)
    people, hits, false_alarms = 0, 0, 0
    for index, canvas in enumerate((canvases.pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()):
        boxes = [np.array(face.box) for face in analyzer.detect_at(canvas, [256])]
        real = canvases.boxes[index][canvases.state[index] == 1].numpy()  # (F, 4)
        known = canvases.boxes[index][canvases.state[index] != 0].numpy()
        people += len(real)
        hits += sum(any(_iou(box, truth) > 0.5 for box in boxes) for truth in real)
        false_alarms += sum(all(_iou(box, truth) < 0.2 for truth in known) for box in boxes)
    empty = backdrops(count // 5, 64, torch.Generator().manual_seed(1))
    alarms = sum(bool(analyzer.detect(photo)) for photo in (empty * 255).byte().permute(0, 2, 3, 1).numpy())
    return {
        "recall": found / len(rows),
        "portraits_with_extra_faces": extra / len(rows),
        "landmark_error_of_side": float(np.mean(errors)) if errors else float("nan"),
        "cosine_of_detected_and_exact_alignment": (torch.cat(embeddings) * torch.cat(aligned))
        .sum(-1)
        .mean()
        .item()
        if embeddings
        else float("nan"),
        "canvas_recall": hits / max(people, 1),
        "false_alarms_per_canvas": false_alarms / len(canvases.pictures),
        "empty_pictures_with_a_face": alarms / len(empty),
    }


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:4], second[2:4])
    overlap = np.prod(np.clip(high - low, 0, None))
    return float(overlap / (np.prod(first[2:4] - first[:2]) + np.prod(second[2:] - second[:2]) - overlap))

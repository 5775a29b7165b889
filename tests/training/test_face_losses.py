"""Losses of the face models against their definitions."""

import math

import torch
from torch.nn import functional

from difflora.synthetic.detector import ANCHORS, STRIDES, anchors
from training.face_data import Canvases, assign
from training.face_losses import angular_margin_loss, detector_loss, generalised_iou, spread_loss


def test_without_margin_it_is_cross_entropy(generator: torch.Generator) -> None:
    first = functional.normalize(torch.randn(5, 8, generator=generator), dim=1)
    second = functional.normalize(torch.randn(5, 8, generator=generator), dim=1)
    logits = 3.0 * first @ second.T
    expected = (
        functional.cross_entropy(logits, torch.arange(5))
        + functional.cross_entropy(logits.T, torch.arange(5))
    ) / 2
    torch.testing.assert_close(angular_margin_loss(first, second, margin=0.0, scale=3.0), expected)


def test_the_margin_is_an_angle() -> None:
    first = torch.eye(2)
    second = torch.tensor([[math.cos(0.3), math.sin(0.3)], [-math.sin(0.3), math.cos(0.3)]])
    # both genuine pairs are 0.3 rad apart; cos of the impostor pairs is +- sin 0.3
    genuine = math.cos(0.3 + 0.2)
    terms = [math.log1p(math.exp(sign * math.sin(0.3) - genuine)) for sign in (1, -1)]
    torch.testing.assert_close(
        angular_margin_loss(first, second, margin=0.2, scale=1.0), torch.tensor(sum(terms) / 2)
    )


def test_spread_is_the_mean_square_of_different_people() -> None:
    first, second = torch.eye(3)[:2], torch.eye(3)[[0, 2]]
    assert spread_loss(first, second).item() == 0.0
    assert spread_loss(first, first[[0, 0]]).item() == 0.5  # person 1's second picture looks like person 0


def test_giou_of_known_boxes() -> None:
    first = torch.tensor([[0.0, 0.0, 2.0, 2.0]]).repeat(3, 1)
    second = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [4.0, 0.0, 6.0, 2.0]])
    # equal; half shifted: 2/6 without empty hull; apart: 0 - 4/12
    torch.testing.assert_close(generalised_iou(first, second), torch.tensor([1.0, 1 / 3, -1 / 3]))


class _Perfect(torch.nn.Module):
    """Says exactly what ``assign`` wants to hear about one face."""

    def __init__(self, canvases: Canvases, sure: float) -> None:
        super().__init__()
        self.label = assign(canvases).label
        self.box, self.points, self.sure = canvases.boxes[:, 0], canvases.landmarks[:, 0], sure

    def levels(self, pictures):
        centres, strides, _ = anchors(*pictures.shape[2:])
        logits = torch.where(self.label == 1, self.sure, -self.sure)[..., None]
        low = (centres - self.box[:, None, :2]) / strides[:, None]
        high = (self.box[:, None, 2:] - centres) / strides[:, None]
        points = (self.points[:, None] - centres[None, :, None]) / strides[:, None, None]
        parts = (logits, torch.cat([low, high], dim=-1), points.flatten(2))
        sizes = [pictures.shape[2] * pictures.shape[3] // stride**2 * ANCHORS for stride in STRIDES]
        return list(zip(*(part.split(sizes, dim=1) for part in parts), strict=True))


def test_a_perfect_detector_has_no_loss() -> None:
    canvases = Canvases(
        torch.rand(1, 3, 64, 64),
        torch.tensor([[[10.0, 12.0, 50.0, 52.0]]]),
        torch.rand(1, 1, 5, 2) * 30 + 15,
        torch.ones(1, 1),
    )
    assert detector_loss(_Perfect(canvases, 20.0), canvases).item() < 1e-4
    assert detector_loss(_Perfect(canvases, -2.0), canvases).item() > 0.5

"""Verification on embeddings whose answer is known."""

import torch
from torch.nn import functional

from training.face_measures import verification


def test_perfect_and_useless_embeddings(generator: torch.Generator) -> None:
    perfect = functional.normalize(torch.eye(20) - 0.05, dim=-1)[:, None].expand(20, 3, 20)
    measures = verification(perfect)
    assert measures["true_positive_rate"] == 1.0
    torch.testing.assert_close(measures["same"], 1.0)
    torch.testing.assert_close(measures["different"], -1 / 19)  # the corners of a simplex
    torch.testing.assert_close(measures["dimensions"], 19.0**2, rtol=1e-4, atol=0)
    noise = functional.normalize(torch.randn(60, 4, 16, generator=generator), dim=-1)
    assert verification(noise, 0.1)["true_positive_rate"] < 0.2


def test_the_threshold_lets_the_given_share_pass(generator: torch.Generator) -> None:
    people = functional.normalize(torch.randn(40, 1, 16, generator=generator), dim=-1)
    embedding = functional.normalize(people + 0.1 * torch.randn(40, 3, 16, generator=generator), dim=-1)
    measures = verification(embedding, 0.01)
    flat = embedding.view(-1, 16)
    cosine = flat @ flat.T
    person = torch.arange(40).repeat_interleave(3)
    different = cosine[(person[:, None] < person[None])]
    assert abs((different > measures["threshold"]).float().mean().item() - 0.01) < 1e-3

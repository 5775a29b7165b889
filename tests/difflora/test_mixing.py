"""MIF: the order and padding of photos cannot matter, and no photo is the null condition."""

import pytest
import torch

from difflora.errors import DiffLoRAError
from difflora.mixing import MifConfig, MixedImageFeatures

CONFIG = MifConfig(face_width=32, image_width=12, width=16, heads=2)


@pytest.fixture
def mif() -> MixedImageFeatures:
    torch.manual_seed(0)
    return MixedImageFeatures(CONFIG)


@pytest.fixture
def photos() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 32, generator=generator), torch.randn(2, 3, 12, generator=generator)


def test_shapes_and_gate(mif: MixedImageFeatures, photos: tuple[torch.Tensor, torch.Tensor]) -> None:
    condition = mif(*photos, torch.ones(2, 3, dtype=torch.bool))
    assert condition.vector.shape == (2, 16)
    assert condition.tokens.shape == (2, 4, 16)
    torch.testing.assert_close(mif.expert_weights(*photos).sum(dim=-1), torch.ones(2, 3))


def test_order_of_photos_does_not_matter(
    mif: MixedImageFeatures, photos: tuple[torch.Tensor, torch.Tensor]
) -> None:
    face, image = photos
    mask = torch.tensor([[True, True, False], [True, True, True]])
    order = [2, 0, 1]
    torch.testing.assert_close(
        mif(face, image, mask).tokens, mif(face[:, order], image[:, order], mask[:, order]).tokens
    )


def test_masked_photo_is_as_if_absent(
    mif: MixedImageFeatures, photos: tuple[torch.Tensor, torch.Tensor]
) -> None:
    face, image = photos
    alone = mif(face[:, :1], image[:, :1], torch.ones(2, 1, dtype=torch.bool))
    padded = mif(face, image, torch.tensor([[True, False, False]] * 2))
    torch.testing.assert_close(alone.vector, padded.vector)
    torch.testing.assert_close(alone.tokens, padded.tokens)


def test_a_weight_is_how_often_a_photo_is_listed(
    mif: MixedImageFeatures, photos: tuple[torch.Tensor, torch.Tensor]
) -> None:
    face, image = photos
    listed = [0, 1, 1, 1, 2]
    often = mif(face[:, listed], image[:, listed], torch.ones(2, 5, dtype=torch.bool))
    weighted = mif(face, image, torch.tensor([[1.0, 3.0, 1.0]] * 2))
    torch.testing.assert_close(weighted.vector, often.vector)
    torch.testing.assert_close(weighted.tokens, often.tokens)
    # only the ratios count, 0 is absent, and 1 for everybody is the mask
    torch.testing.assert_close(mif(face, image, torch.tensor([[2.0, 6.0, 2.0]] * 2)).tokens, often.tokens)
    without = mif(face, image, torch.tensor([[True, True, False]] * 2))
    torch.testing.assert_close(mif(face, image, torch.tensor([[0.5, 0.5, 0.0]] * 2)).tokens, without.tokens)
    assert not torch.allclose(weighted.tokens, mif(face, image, torch.ones(2, 3)).tokens)


def test_weights_of_nobody_are_the_null_condition(
    mif: MixedImageFeatures, photos: tuple[torch.Tensor, torch.Tensor]
) -> None:
    null = mif(*photos, torch.zeros(2, 3, dtype=torch.bool))
    torch.testing.assert_close(mif(*photos, torch.zeros(2, 3)).tokens, null.tokens)


def test_no_photo_is_the_null_condition(
    mif: MixedImageFeatures, photos: tuple[torch.Tensor, torch.Tensor]
) -> None:
    with torch.no_grad():
        mif.null_tokens.normal_()
    condition = mif(*photos, torch.tensor([[True, True, True], [False, False, False]]))
    torch.testing.assert_close(condition.tokens[1], mif.norm(mif.null_tokens))
    assert not torch.allclose(condition.tokens[0], condition.tokens[1])
    condition.vector.sum().backward()
    assert all(
        torch.isfinite(parameter.grad).all() for parameter in mif.parameters() if parameter.grad is not None
    )


def test_errors(mif: MixedImageFeatures) -> None:
    with pytest.raises(DiffLoRAError, match="trained on 32 and 12"):
        mif(torch.zeros(1, 1, 8), torch.zeros(1, 1, 12), torch.ones(1, 1, dtype=torch.bool))
    for weight in (-1.0, float("nan")):
        with pytest.raises(DiffLoRAError, match="negative or no number"):
            mif(torch.zeros(1, 1, 32), torch.zeros(1, 1, 12), torch.full((1, 1), weight))
    with pytest.raises(DiffLoRAError, match="even number"):
        MifConfig(experts=3)
    with pytest.raises(DiffLoRAError, match="multiple of heads"):
        MifConfig(width=10, heads=4)

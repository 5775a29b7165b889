"""The recognisers: alignment equals insightface's, and what was saved is what is loaded."""

import numpy as np
import pytest
import torch

from difflora.errors import CheckpointError
from difflora.synthetic.recognisers import (
    ARCFACE_LANDMARKS,
    EvaluationRecogniser,
    EvaluationRecogniserConfig,
    Recogniser,
    RecogniserConfig,
    align,
    alignment,
)

SMALL = EvaluationRecogniserConfig(channels=(8, 8, 16, 16), width=12)


def landmarks(generator: torch.Generator) -> torch.Tensor:
    """(2, 5, 2) plausible landmarks in a 64 px picture, turned and shaken."""
    points = torch.tensor(ARCFACE_LANDMARKS) * 0.3 + 14.0
    turned = points @ torch.tensor([[0.96, 0.28], [-0.28, 0.96]]) + torch.tensor([10.0, -5.0])
    return torch.stack([points, turned]) + torch.randn(2, 5, 2, generator=generator)


def test_crops_equal_those_of_insightface(generator: torch.Generator) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries that insightface imports
        from insightface.utils import face_align
    pictures = torch.rand(2, 3, 9, 9, generator=generator)
    pictures = torch.nn.functional.interpolate(pictures, (64, 64), mode="bicubic").clamp(0, 1)
    points = landmarks(generator)
    crops = align(pictures, points)
    for picture, point, crop, matrix in zip(pictures, points, crops, alignment(points), strict=True):
        image = np.ascontiguousarray(picture.permute(1, 2, 0).numpy() * 255)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            np.testing.assert_allclose(matrix, face_align.estimate_norm(point.numpy()), atol=1e-3)
            expected = face_align.norm_crop(image, point.numpy())
        # OpenCV rounds coordinates to 1/32 pixel, and blends the outline of the picture differently
        difference = np.abs(crop.permute(1, 2, 0).numpy() * 255 - expected)
        assert np.median(difference) < 1.0
        assert np.quantile(difference, 0.97) < 4.0


def test_shapes(generator: torch.Generator) -> None:
    assert Recogniser(RecogniserConfig()).train(False)(torch.zeros(1, 3, 112, 112)).shape == (1, 512)
    embedding = EvaluationRecogniser(SMALL).train(False)(torch.rand(3, 3, 64, 64, generator=generator))
    assert embedding.shape == (3, 12)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3))


def test_saved_is_loaded(tmp_path, generator: torch.Generator) -> None:
    model = EvaluationRecogniser(SMALL).train(False)
    loaded = EvaluationRecogniser.load(model.save(tmp_path / "judge.safetensors"))
    pictures = torch.rand(2, 3, 64, 64, generator=generator)
    torch.testing.assert_close(loaded(pictures), model(pictures), rtol=0, atol=5e-3)  # float16 on disk
    assert loaded.config == SMALL


def test_another_file_is_refused(tmp_path) -> None:
    from difflora.files import save_safetensors

    with pytest.raises(CheckpointError, match="no evaluation recogniser"):
        EvaluationRecogniser.load(save_safetensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="no such file"):
        EvaluationRecogniser.load(tmp_path / "missing.safetensors")

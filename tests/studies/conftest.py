"""The base model of one random transformer block that draws, and a judge of colours."""

import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location(
    "training_fixtures", Path(__file__).parents[1] / "training" / "conftest.py"
)
training_fixtures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(training_fixtures)
one_block_base = training_fixtures.one_block_base
drawing_base = training_fixtures.drawing_base


class ColourJudge:
    """A person looks like the mean of its traits; a picture is alike if it is as bright."""

    def targets(self, traits):
        return traits.mean(dim=1, keepdim=True)  # (B, 1)

    def similarity(self, pictures, targets):
        return 1 - (pictures.mean(dim=(2, 3, 4)) - targets).abs()  # (B, K)


@pytest.fixture
def judge():
    return ColourJudge()

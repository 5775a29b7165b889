"""Settings that every test shares. The host's own fixtures are in tests/nodes/conftest.py."""

import os

# The models in the tests are tiny: several threads on a busy machine are many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing in the tests may reach for the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator on the CPU."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the repository."""
    return Path(__file__).resolve().parents[1]

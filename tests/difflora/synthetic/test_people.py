import pytest
import torch

from difflora.errors import DiffLoRAError
from difflora.synthetic.people import NUM_TRAITS, TRAITS, describe_traits, sample_people


def test_a_person_is_the_same_in_every_call():
    together = sample_people("train", 0, 20)
    assert torch.equal(sample_people("train", 7, 5), together[7:12])
    assert together.shape == (20, NUM_TRAITS) and together.dtype == torch.float32
    assert -1 <= together.min() < -0.9 and 0.9 < together.max() <= 1


def test_splits_share_nobody():
    splits = [sample_people(name, 0, 100) for name in ("train", "validation", "test")]
    everybody = torch.cat(splits)
    distances = torch.cdist(everybody, everybody) + 9 * torch.eye(300)
    assert distances.min() > 0.5


def test_unknown_split_is_refused_with_the_known_ones():
    with pytest.raises(DiffLoRAError, match="validation"):
        sample_people("holdout", 0, 1)
    with pytest.raises(DiffLoRAError, match="start at 0"):
        sample_people("train", -1, 1)


def test_words_follow_the_traits():
    low, high = describe_traits(torch.tensor([-1.0, 1.0])[:, None].expand(2, NUM_TRAITS))
    assert low[0] == TRAITS[0].words[0] and high[0] == TRAITS[0].words[-1]
    assert "black hair" in low and "platinum hair" in high

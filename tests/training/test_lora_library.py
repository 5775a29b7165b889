"""A library on disk reads like one in memory."""

import pytest
import torch

from difflora.errors import LayoutError
from difflora.files import save_safetensors
from difflora.layout import LoraLayout, ModuleSpec
from difflora.normalisation import LoraNormalisation
from training.common import open_run
from training.lora_library import MappedWeights, load_library
from training.train_lae import weight_reader

LAYOUT = LoraLayout((ModuleSpec("a", 3, 4), ModuleSpec("b", 2, 4)), rank=1, alpha=27.0, train_down=True)


@pytest.fixture
def folder(tmp_path):
    """Seven LoRAs with lora_down of their own in shards of three: no shared_down file."""
    open_run(tmp_path, {"layout": LAYOUT.to_json()})
    flat = torch.randn(7, LAYOUT.num_parameters, generator=torch.Generator().manual_seed(0)).half()
    for number, rows in enumerate(torch.arange(7).split(3)):
        path = tmp_path / "train" / f"shard-{number:05d}.safetensors"
        save_safetensors(path, {"flat_weights": flat[rows], "people": 10 + rows})
    return tmp_path, flat


def test_mapped_library_is_the_same(folder):
    path, flat = folder
    whole, mapped = load_library(path), load_library(path, mapped=True)
    assert whole.shared_down == {} and whole.flat.dtype == torch.float32
    assert torch.equal(whole.flat, flat.float()) and whole.people.tolist() == list(range(10, 17))
    assert isinstance(mapped.flat, MappedWeights)
    assert mapped.flat.shape == flat.shape and len(mapped.flat) == 7
    rows = torch.tensor([6, 0, 3, 2, 2])
    assert torch.equal(mapped.flat[rows], flat[rows])
    assert torch.equal(mapped.flat[2:6][torch.tensor([3, 0])], flat[[5, 2]])
    assert torch.equal(torch.cat(list(mapped.flat[1:].split(4))), flat[1:])


def test_statistics_and_batches_of_a_mapped_library(folder, monkeypatch):
    path, flat = folder
    library = load_library(path, mapped=True).flat
    normalisation = LoraNormalisation.fit(library[:5], LAYOUT)
    own = flat[:5].double()
    torch.testing.assert_close(normalisation.mean.double(), own.mean(0))
    first = (own - own.mean(0))[:, :3].square().mean().sqrt()  # lora_down of a
    torch.testing.assert_close(normalisation.rms[0].double(), first)
    rows = torch.tensor([5, 1])
    expected = normalisation.normalise(flat.float())[rows]
    torch.testing.assert_close(weight_reader(library, normalisation, "cpu")(rows), expected)
    monkeypatch.setattr("training.train_lae.KEPT_NUMBERS", 10)  # too large to keep
    torch.testing.assert_close(weight_reader(library, normalisation, "cpu")(rows), expected)


def test_shards_of_another_length_are_refused(folder):
    path, _ = folder
    save_safetensors(
        path / "train" / "shard-00003.safetensors",
        {"flat_weights": torch.zeros(1, 5), "people": torch.tensor([0])},
    )
    with pytest.raises(LayoutError, match="do not fit"):
        load_library(path, mapped=True)

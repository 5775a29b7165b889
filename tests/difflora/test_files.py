"""Files are whole or absent; what cannot be read says why."""

import pytest
import torch

from difflora.errors import CheckpointError
from difflora.files import atomic_save, load_safetensors, save_safetensors, tensor_shapes


def test_round_trip_keeps_values_dtypes_and_metadata(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "whole": base,
        "same": base,
        "view": base[:, 1],
        "half": base.half(),
        "scalar": torch.tensor(2.0),
    }
    path = save_safetensors(tmp_path / "new" / "x.safetensors", tensors, {"name": "Zoë"})
    loaded, metadata = load_safetensors(path)
    assert metadata == {"name": "Zoë"}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half of the n")
        raise error

    with pytest.raises(error):
        atomic_save(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_temporary_file_has_the_suffix_and_hides_from_patterns(tmp_path):
    seen = []
    atomic_save(tmp_path / "shard-00000.png", lambda temporary: (seen.append(temporary), temporary.touch()))
    assert seen[0].suffix == ".png"
    assert seen[0].name.startswith(".")


def test_missing_truncated_foreign_and_pickled_files(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_safetensors(tmp_path / "absent.safetensors")
    whole = save_safetensors(tmp_path / "whole.safetensors", {"x": torch.zeros(100)}).read_bytes()
    for name, content in {
        "cut": whole[:-50],
        "header": whole[:20],
        "text": b"hello there",
        "empty": b"",
    }.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"truncated or not \.safetensors"):
            load_safetensors(path)
    torch.save({"x": torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="pickle"):
        load_safetensors(tmp_path / "x.pt")
    (tmp_path / "x.pt").rename(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="pickle"):
        load_safetensors(tmp_path / "x.safetensors")


def test_shapes_come_from_the_header_alone(tmp_path):
    path = save_safetensors(tmp_path / "x.safetensors", {"a": torch.zeros(2, 3), "b": torch.zeros(())})
    assert tensor_shapes(path) == {"a": (2, 3), "b": ()}
    with pytest.raises(CheckpointError, match="no such file"):
        tensor_shapes(tmp_path / "y.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"truncated or not \.safetensors"):
        tensor_shapes(path)

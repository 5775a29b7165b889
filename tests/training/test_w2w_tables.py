"""The tables beside weights2weights' weights: read without pandas, refused when they could run anything.

`identity_table_pandas15.pt` and `..22.pt` were written by `torch.save` of the data frame below, with pandas
1.5.3 (numpy 1.26) and 2.2.3 (numpy 2.4).
"""

from pathlib import Path

import pytest
import torch

from difflora.errors import CheckpointError
from difflora.layout import LoraLayout, ModuleSpec
from training.w2w_tables import INDEX, check_dimensions, read_identities, read_pickled_table

HERE = Path(__file__).parent
TABLE = {
    INDEX: ["000003.jpg", "17", "000012.jpg", "23"],
    "Male": ["1", "-1", "1", "1"],
    "Smiling": ["-1", "-1", "1", "-1"],
    "identity": ["7", "3", "7", "5"],
}
LAYOUT = LoraLayout((ModuleSpec("mid.to_q", 6, 4), ModuleSpec("mid.to_v", 5, 4)), 1, 27.0, train_down=True)


@pytest.mark.parametrize("version", ["15", "22"])
def test_pickled_table_is_read_without_pandas(version):
    assert read_pickled_table(HERE / f"identity_table_pandas{version}.pt") == TABLE


def test_csv_and_pickle_say_the_same(tmp_path):
    lines = [",".join(["" if name == INDEX else name for name in TABLE])]
    lines += [",".join(cells) for cells in zip(*TABLE.values(), strict=True)]
    (tmp_path / "identities.csv").write_text("\n".join(lines) + "\n")
    identities = read_identities(tmp_path / "identities.csv")
    assert identities == read_identities(HERE / "identity_table_pandas22.pt")
    assert [(identity.name, identity.person) for identity in identities[:2]] == [
        ("000003.jpg", "7"),
        ("17", "3"),
    ]
    assert [i.name for i in read_identities(tmp_path / "identities.csv", "identity")] == ["7", "3", "7", "5"]
    with pytest.raises(CheckpointError, match=r"no column 'folder': it has .*Male"):
        read_identities(tmp_path / "identities.csv", "folder")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_file_that_runs_something_is_refused_and_nothing_ran(tmp_path):
    torch.save(Bomb(tmp_path / "ran"), tmp_path / "identity_df.pt")
    with pytest.raises(CheckpointError, match=r"write a \.csv with"):
        read_identities(tmp_path / "identity_df.pt")
    assert not (tmp_path / "ran").exists()


def test_unknown_table_names_the_way_around(tmp_path):
    torch.save({"identity": [1, 2]}, tmp_path / "identity_df.pt")
    with pytest.raises(CheckpointError, match="to_csv"):
        read_identities(tmp_path / "identity_df.pt")
    (tmp_path / "ragged.csv").write_text("a,b\n1\n")
    with pytest.raises(CheckpointError, match="rows of one length"):
        read_identities(tmp_path / "ragged.csv")


def dimensions(**changes):
    keys = {
        f"base_model.model.mid.{projection}.lora_{part}.weight": shape
        for projection, width in (("to_q", 6), ("to_v", 5))
        for part, shape in (("A", (1, width)), ("B", (4, 1)))
    }
    return {key: (torch.Size([shape[0] * shape[1]]), torch.Size(shape)) for key, shape in keys.items()}


def test_dimensions_say_whether_order_and_shapes_are_ours():
    check_dimensions(dimensions(), LAYOUT)
    # the same keys as the authors' notebooks write them
    check_dimensions(
        {
            k.replace("base_model.model.", "lora_unet_").replace(".lora", "_lora"): v
            for k, v in dimensions().items()
        },
        LAYOUT,
    )
    with pytest.raises(CheckpointError, match=r"tensor 0 of the dimensions is mid_to_v"):
        check_dimensions(dict(reversed(dimensions().items())), LAYOUT)
    with pytest.raises(CheckpointError, match=r"expected 4"):
        check_dimensions(dict(list(dimensions().items())[:3]), LAYOUT)

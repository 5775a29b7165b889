"""Packs are found where people put them, and what was searched is told when they are not."""

import shutil
import zipfile
from pathlib import Path

import pytest

from difflora.errors import FaceModelError
from difflora.face_packs import find_face_pack, pack_files, search_face_packs, searched_places
from difflora.synthetic import world


def put_pack(folder: Path) -> Path:
    """The shipped pack once more, in another folder."""
    shutil.copytree(world.FACE_PACK, folder)
    return folder


@pytest.fixture
def roots(tmp_path) -> list[Path]:
    """Three configured folders: an insightface root, a plain folder of packs, and one that does not exist."""
    put_pack(tmp_path / "insightface" / "models" / "buffalo_l")
    put_pack(tmp_path / "insightface" / "models" / "antelopev2" / "antelopev2")  # as its archive unpacks
    put_pack(tmp_path / "packs" / "other")
    put_pack(tmp_path / "packs" / "buffalo_l")
    (tmp_path / "insightface" / "inswapper_128.onnx").write_bytes(b"another tool's file")
    return [tmp_path / "insightface", tmp_path / "packs", tmp_path / "nowhere"]


def test_packs_of_all_folders_the_first_of_a_name(roots) -> None:
    found = {pack.name: pack.folder for pack in search_face_packs(roots)}
    assert found.pop("insightface", None) is not None  # a damaged file there: loading it says so
    models = roots[0].resolve() / "models"
    assert found == {
        "antelopev2": models / "antelopev2" / "antelopev2",
        "buffalo_l": models / "buffalo_l",
        "other": roots[1].resolve() / "other",
    }


def test_a_configured_folder_may_be_a_pack(roots) -> None:
    (pack,) = search_face_packs([roots[1] / "other"])
    assert pack.name == "other" and pack.folder == (roots[1] / "other").resolve()


def test_a_name_is_looked_up_and_a_path_is_not(roots, tmp_path) -> None:
    assert find_face_pack("antelopev2", roots).folder.parts[-2:] == ("antelopev2", "antelopev2")
    assert find_face_pack("antelopev2", roots).name == "antelopev2"
    with pytest.raises(FaceModelError, match="no face pack at"):
        find_face_pack(tmp_path / "antelopev2", roots)


def test_a_missing_pack_lists_every_path_and_what_was_found(roots) -> None:
    with pytest.raises(FaceModelError) as caught:
        find_face_pack("buffalo_s", roots)
    message = str(caught.value)
    for place in searched_places(roots):
        assert str(place) in message
    assert len(searched_places(roots)) == 6
    assert all(name in message for name in ("antelopev2", "buffalo_l", "other"))
    assert str(roots[0].resolve() / "models" / "buffalo_s") in message  # where to put it


def test_an_archive_that_was_not_unpacked_is_named(roots) -> None:
    with zipfile.ZipFile(roots[0] / "models" / "buffalo_s.zip", "w") as archive:
        archive.writestr("det_500m.onnx", b"")
    with pytest.raises(FaceModelError, match=r"unpack \S+buffalo_s\.zip there"):
        find_face_pack("buffalo_s", roots)


def test_a_folder_of_that_name_without_models_is_named(roots) -> None:
    (roots[1] / "buffalo_s").mkdir()
    with pytest.raises(FaceModelError, match=r"packs.buffalo_s has no \.onnx files"):
        find_face_pack("buffalo_s", roots)


def test_pack_is_found_from_its_parent_and_from_a_root(tmp_path) -> None:
    nested = put_pack(tmp_path / "models" / "antelopev2" / "antelopev2")
    for start in (nested, nested.parent, tmp_path):
        if start == tmp_path:
            shutil.move(nested, tmp_path / "models" / "antelopev2x")
            shutil.rmtree(nested.parent)
            nested = tmp_path / "models" / "antelopev2x"
        assert find_face_pack(start).folder == nested.resolve()
    put_pack(tmp_path / "models" / "second")
    with pytest.raises(FaceModelError, match="several face packs: choose one of"):
        find_face_pack(tmp_path)


def test_only_detector_and_recogniser_count(tmp_path) -> None:
    """Files are told apart by their shapes, whatever their names, as insightface does."""
    helper, tensor = pytest.importorskip("onnx").helper, pytest.importorskip("onnx").TensorProto.FLOAT

    def model(name: str, side: int, outputs: int = 1) -> None:
        picture = helper.make_tensor_value_info("picture", tensor, (1, 3, side, side))
        values = [helper.make_tensor_value_info(f"out{i}", tensor, (1, 3)) for i in range(outputs)]
        nodes = [helper.make_node("Identity", ["picture"], [value.name]) for value in values]
        graph = helper.make_graph(nodes, "graph", [picture], values)
        pytest.importorskip("onnx").save(helper.make_model(graph), tmp_path / name)

    for name, side, outputs in (
        ("1k3d68.onnx", 192, 1),
        ("2d106det.onnx", 192, 1),
        ("genderage.onnx", 96, 1),
        ("glintr100.onnx", 112, 1),
        ("scrfd_10g_bnkps.onnx", 640, 9),
    ):
        model(name, side, outputs)
    names = {task: path.name for task, path in pack_files(tmp_path).items()}
    assert names == {"detection": "scrfd_10g_bnkps.onnx", "recognition": "glintr100.onnx"}

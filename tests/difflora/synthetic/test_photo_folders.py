import numpy as np
from PIL import Image

from difflora.synthetic.photo_folders import save_photo_folders


def test_folders_hold_different_people_and_what_exists_stays(tmp_path):
    folders = save_photo_folders(tmp_path, num_people=2, num_photos=2)
    assert [folder.name for folder in folders] == ["person_0", "person_1"]
    pictures = [np.asarray(Image.open(path)) for folder in folders for path in sorted(folder.iterdir())]
    assert len(pictures) == 4 and {picture.shape for picture in pictures} == {(128, 128, 3)}
    assert len({picture.tobytes() for picture in pictures}) == 4
    first = folders[0] / "photo_0_0.png"
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*.png"))}
    first.unlink()
    times = {path: path.stat().st_mtime_ns for path in folders[1].iterdir()}
    save_photo_folders(tmp_path, num_people=2, num_photos=2)
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*.png"))} == before  # the same again
    assert {path: path.stat().st_mtime_ns for path in folders[1].iterdir()} == times

"""A folder per person -> a LoRA file per person: nothing twice, nobody stopped by a neighbour."""

import shutil

import pytest
import torch
from PIL import Image

from difflora.batch import CONTENT_KEY, BatchSettings, find_people, networks_hash, personalize_folders
from difflora.errors import DiffLoRAError, PhotoError
from difflora.lora import Lora
from difflora.model import DiffLoRA
from difflora.synthetic.photo_folders import save_photo_folders


@pytest.fixture(scope="module")
def model():
    return DiffLoRA.load()


@pytest.fixture
def people(tmp_path):
    """Two people with two photos each."""
    save_photo_folders(tmp_path / "people", num_people=2, num_photos=2)
    return tmp_path / "people"


def run(model, people, **options):
    return personalize_folders(model, find_people(people), people.parent / "loras", **options)


def outcomes(results):
    return {result.person: result.outcome for result in results}


def test_people_are_folders_with_pictures(people):
    (people / ".hidden").mkdir()
    (people / "notes.txt").write_text("x")
    (people / "person_1" / "notes.txt").write_text("x")
    (people / "person_1" / ".photo.png").write_text("x")
    found = find_people(people)
    assert {person: [photo.name for photo in photos] for person, photos in found.items()} == {
        "person_0": ["photo_0_0.png", "photo_0_1.png"],
        "person_1": ["photo_0_0.png", "photo_0_1.png"],
    }


def test_no_folder_and_no_people(tmp_path):
    with pytest.raises(PhotoError, match=r"no folder .*nowhere"):
        find_people(tmp_path / "nowhere")
    (tmp_path / "photo.png").write_text("x")
    with pytest.raises(PhotoError, match="has no folders in it"):
        find_people(tmp_path)


def test_the_same_as_one_by_one_and_never_twice(model, people):
    assert outcomes(run(model, people)) == {"person_0": "made", "person_1": "made"}
    files = sorted((people.parent / "loras").iterdir())
    assert [file.name for file in files] == ["person_0.safetensors", "person_1.safetensors"]
    alone = model.generate(model.encode(find_people(people)["person_1"]))
    made = Lora.load(files[1])
    assert torch.equal(made.flat(), alone.flat().half().float())
    assert made.metadata["modelspec.title"] == "person_1"
    assert made.metadata["difflora.num_photos"] == "2"

    before = [file.stat().st_mtime_ns for file in files]
    shutil.move(people / "person_0" / "photo_0_0.png", people / "person_0" / "zz.png")  # content counts
    steps = []
    results = run(model, people, progress=lambda *done: steps.append(done))
    assert outcomes(results) == {"person_0": "up to date", "person_1": "up to date"}
    assert [file.stat().st_mtime_ns for file in files] == before
    assert steps[-1][0] == steps[-1][1]


def test_other_photos_settings_or_networks_make_it_again(model, people):
    run(model, people)
    (people / "person_0" / "photo_0_1.png").unlink()
    assert outcomes(run(model, people)) == {"person_0": "made", "person_1": "up to date"}
    other = BatchSettings(num_steps=model.recommended.num_steps + 1)
    assert set(outcomes(run(model, people, settings=other)).values()) == {"made"}
    told = BatchSettings(num_steps=other.num_steps, noise_scale=model.recommended.noise_scale)
    assert set(outcomes(run(model, people, settings=told)).values()) == {
        "up to date"
    }  # the same, spelled out

    before = networks_hash(model)
    bias = next(model.checkpoint.networks.dit.parameters())
    with torch.no_grad():
        bias.view(-1)[0] += 1
        assert networks_hash(model) != before
        bias.view(-1)[0] -= 1


def test_a_bad_folder_stops_nobody(model, people):
    (people / "a_nobody").mkdir()
    (people / "b_broken").mkdir()
    (people / "b_broken" / "x.png").write_bytes(b"no picture")
    (people / "c_blank").mkdir()
    Image.new("RGB", (64, 64)).save(people / "c_blank" / "x.png")
    (people.parent / "loras").mkdir()
    foreign = Lora.load(run(model, people)[-1].path)
    foreign = Lora(foreign.layout, foreign.down, foreign.up)
    theirs = foreign.save(people.parent / "loras" / "person_1.safetensors").read_bytes()
    (people.parent / "loras" / "person_0.safetensors").write_bytes(theirs[:100])
    announced = []
    results = run(model, people, announce=announced.append)
    assert announced == results
    reasons = {result.person: result.reason for result in results}
    assert {result.outcome for result in results} == {"failed"}
    assert "no photos" in reasons["a_nobody"]
    assert "not a readable picture" in reasons["b_broken"]
    assert "no face" in reasons["c_blank"]
    assert "truncated" in reasons["person_0"]
    assert "was not made from a folder" in reasons["person_1"]
    assert (people.parent / "loras" / "person_1.safetensors").read_bytes() == theirs


def test_stopping_keeps_what_is_done(model, people):
    class Stopped(Exception):
        pass

    def stop(done, total):
        if done > total // 2:  # in the middle of the second person
            raise Stopped

    with pytest.raises(Stopped):
        run(model, people, progress=stop)
    assert [file.name for file in (people.parent / "loras").iterdir()] == ["person_0.safetensors"]
    assert outcomes(run(model, people)) == {"person_0": "up to date", "person_1": "made"}


def test_what_cannot_be_a_batch(model, people):
    with pytest.raises(DiffLoRAError, match="peft wants a folder"):
        run(model, people, settings=BatchSettings(key_style="peft"))


def test_header_tells_what_it_was_made_of(model, people):
    results = run(model, people, settings=BatchSettings(key_style="diffusion_model", sidecar=True))
    metadata = Lora.load(results[0].path).metadata
    assert len(metadata[CONTENT_KEY]) == 64
    assert results[0].path.with_suffix(".metadata.json").is_file()
    assert str(results[0]) == "person_0: made, person_0.safetensors from 2 of 2 photos"

"""The command line: one clear line and exit code 2 for what the user can mend, and nothing half-written."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from difflora import Lora, doctor
from difflora.__main__ import USER_ERROR, build_parser, choose_device, main
from difflora.errors import DiffLoRAError
from difflora.files import save_safetensors
from difflora.findings import Finding
from difflora.sheet import to_image
from difflora.synthetic.people import sample_people
from difflora.synthetic.photo_folders import save_photo_folders
from difflora.synthetic.renderer import PHOTO_PX, render
from difflora.synthetic.scenes import scene_for


@pytest.fixture
def grey_photo(tmp_path):
    Image.fromarray(np.full((64, 64, 3), 128, dtype=np.uint8)).save(tmp_path / "grey.png")
    return tmp_path / "grey.png"


def error_of(capsys, *arguments):
    """The one line that a failing command prints."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
    return lines[0]


def test_missing_photo(capsys, tmp_path):
    message = error_of(capsys, "personalize", tmp_path / "nobody.png", "--out", tmp_path / "x.safetensors")
    assert "nobody.png" in message


def test_output_name(capsys, grey_photo, tmp_path):
    assert ".safetensors" in error_of(capsys, "personalize", grey_photo, "--out", tmp_path / "x.ckpt")


def test_no_candidates(capsys, grey_photo, tmp_path):
    out = tmp_path / "x.safetensors"
    message = error_of(capsys, "personalize", grey_photo, "--out", out, "--candidates", 0)
    assert "at least one" in message and not out.exists()


def test_best_of_two_is_one_of_the_two(capsys, tmp_path):
    photo, out = tmp_path / "photo.png", tmp_path / "x.safetensors"
    traits = sample_people("test", 3, 1)
    to_image(render(traits, scene_for(expression="smiling"), PHOTO_PX).pictures[0] * 2 - 1).save(photo)
    assert main(["personalize", str(photo), "--out", str(out), "--candidates", "2", "--seed", "5"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("seed ")]
    likeness = [float(line.split()[-1]) for line in lines]
    assert len(lines) == 2 and likeness == sorted(likeness, reverse=True)
    kept = Lora.load(out).metadata
    assert lines[0].startswith(f"seed {kept['difflora.seed']}:") and kept["difflora.noise_scale"] == "0.3"


def test_no_face(capsys, grey_photo, tmp_path):
    out = tmp_path / "x.safetensors"
    assert "no face" in error_of(capsys, "personalize", grey_photo, "--out", out)
    assert not out.exists()


def test_truncated_checkpoint(capsys, grey_photo, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x10\x00\x00")
    out = tmp_path / "x.safetensors"
    message = error_of(capsys, "personalize", grey_photo, "--out", out, "--checkpoint", broken)
    assert "broken.safetensors" in message and not out.exists()


def test_tiny_photo(capsys, tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    assert "1" in error_of(capsys, "personalize", tmp_path / "dot.png", "--out", tmp_path / "x.safetensors")


def test_folder_of_people_then_only_the_new_one(capsys, tmp_path):
    save_photo_folders(tmp_path / "people", num_people=1, num_photos=1)
    command = ["personalize-folder", str(tmp_path / "people"), "--out", str(tmp_path / "loras")]
    assert main(command) == 0
    assert "person_0: made" in capsys.readouterr().out
    (tmp_path / "people" / "empty").mkdir()
    assert main(command) == 2  # a script has to notice
    captured = capsys.readouterr()
    assert "person_0: up to date" in captured.out and "empty: failed" in captured.out
    assert "1 of 2 people failed (empty)" in captured.err


def test_unknown_device_says_what_to_do():
    with pytest.raises(DiffLoRAError, match="--device cpu"):
        choose_device("warp")


def test_every_option_has_help():
    parser = build_parser()
    for command in next(a for a in parser._actions if a.dest == "command").choices.values():
        assert all(action.help for action in command._actions)


def test_doctor_is_content_here_and_speaks_json(capsys, tmp_path):
    assert main(["doctor", "--json", "--face-folder", str(tmp_path)]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert {"python", "torch", "onnxruntime", "checkpoint", "memory"} <= {
        entry["topic"] for entry in findings
    }
    (packs,) = [entry for entry in findings if entry["topic"] == "face packs"]
    assert str(tmp_path / "models") in packs["what"]


def test_doctor_examines_the_checkpoints_of_a_models_folder(capsys, tmp_path):
    """As ComfyUI has it: checkpoints in models/difflora, identities in a folder below."""
    for name in ("mine", "identities/anna"):
        path = save_safetensors(tmp_path / "difflora" / f"{name}.safetensors", {"x": torch.zeros(2)})
    assert main(["doctor", "--json", "--models", str(tmp_path)]) == 1
    findings = json.loads(capsys.readouterr().out)
    (own,) = [entry for entry in findings if entry["topic"] == "own checkpoint"]
    assert "mine.safetensors is not a DiffLoRA checkpoint" in own["what"] and path.stem not in own["what"]
    assert main(["doctor", "--models", str(tmp_path / "nowhere")]) == USER_ERROR


def test_doctor_exits_with_1_when_something_needed_is_broken(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda *folders: (Finding("problem", "x", "is gone", "get x"),))
    assert main(["doctor"]) == 1
    assert "get x" in capsys.readouterr().out

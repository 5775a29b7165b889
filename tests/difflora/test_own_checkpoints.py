"""Every checkpoint of the user's is said to be usable, to lack something, or to be broken in one way."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from difflora import own_checkpoints
from difflora.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from difflora.files import save_safetensors
from difflora.model import EMBEDDED_CHECKPOINT, EMBEDDED_FACE_PACKS
from difflora.own_checkpoints import check_own_checkpoints, find_checkpoints

ENCODER = "openai/clip-vit-large-patch14"


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return replace(load_checkpoint(EMBEDDED_CHECKPOINT), face_pack="antelopev2", image_encoder=ENCODER)


def examine(path: Path, faces: Path, encoders: Path) -> own_checkpoints.Finding:
    (finding,) = check_own_checkpoints([path], [faces], [encoders])
    return finding


def test_what_a_checkpoint_needs_and_where_it_is(tmp_path: Path, checkpoint: Checkpoint) -> None:
    path = save_checkpoint(tmp_path / "mine.safetensors", checkpoint, torch.float16)
    faces, encoders = tmp_path / "insightface", tmp_path / "clip_vision"
    encoders.mkdir()
    lacks = examine(path, faces, encoders)
    assert lacks.level == "problem"
    assert lacks.what.startswith("mine.safetensors: for ") and "a U-Net of widths" in lacks.what
    assert "face pack antelopev2 is missing" in lacks.what
    assert f"unpack antelopev2.zip of insightface to {faces.resolve() / 'models' / 'antelopev2'}" in lacks.fix

    pack = faces / "models" / "antelopev2"
    pack.parent.mkdir(parents=True)
    pack.symlink_to(next(EMBEDDED_FACE_PACKS.iterdir()))
    unsure = examine(path, faces, encoders)
    assert unsure.level == "warning" and f"image encoder {ENCODER} was not found by that name" in unsure.what
    assert f"connect Load CLIP Vision with {ENCODER}" in unsure.fix and str(encoders) in unsure.fix

    file = encoders / "clip-vit-large-patch14.safetensors"
    file.touch()
    by_hand = examine(path, faces, encoders)
    assert by_hand.level == "ok" and f"{file}: connect Load CLIP Vision" in by_hand.what and not by_hand.fix

    folder = encoders / "clip-vit-large-patch14"
    folder.mkdir()
    (folder / "config.json").touch()
    whole = examine(path, faces, encoders)
    assert whole.level == "ok" and whole.what.endswith(f"image encoder {ENCODER} in {folder}")


def test_one_clear_error_for_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    whole = EMBEDDED_CHECKPOINT.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    save_safetensors(tmp_path / "foreign.safetensors", {"x": torch.zeros(2)})
    (tmp_path / "good.safetensors").write_bytes(whole)
    findings = check_own_checkpoints(find_checkpoints(tmp_path), [], [])
    assert [finding.level for finding in findings] == ["problem", "problem", "ok"]
    assert "cut.safetensors is truncated" in findings[0].what
    assert "foreign.safetensors is not a DiffLoRA checkpoint" in findings[1].what
    assert "its face models are built in" in findings[2].what


def test_none_at_all_is_fine() -> None:
    (finding,) = check_own_checkpoints([], [], [])
    assert finding.level == "ok" and "built-in" in finding.what


def test_models_of_the_comfyui_that_the_pack_lies_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "custom_nodes" / "pack" / "difflora" / "own_checkpoints.py"
    monkeypatch.setattr(own_checkpoints, "__file__", str(file))
    assert own_checkpoints.installed_models() is None
    (tmp_path / "models").mkdir()
    assert own_checkpoints.installed_models() == tmp_path / "models"

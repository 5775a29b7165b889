"""The doctor finds what is broken, says how to repair it, and never falls ill."""

import shutil
import sys

import pytest

from difflora import doctor, model, providers
from difflora.doctor import attempt, examine
from difflora.findings import is_broken
from difflora.synthetic import world


def test_all_is_well_here(tmp_path) -> None:
    shutil.copytree(world.FACE_PACK, tmp_path / "models" / "buffalo_l")
    findings = examine([tmp_path, tmp_path / "nowhere"])
    assert not is_broken(findings)
    (packs,) = [finding for finding in findings if finding.topic == "face packs"]
    assert f"buffalo_l in {(tmp_path / 'models' / 'buffalo_l').resolve()}" in packs.what
    assert "nowhere (no such folder)" in packs.what


def test_versions_are_held_against_the_requirements(monkeypatch) -> None:
    installed = {"torch": "2.1.0+cu118", "numpy": "1.26.4", "pillow": None}
    monkeypatch.setattr(doctor, "_version", lambda name: installed.get(name, "99.0"))
    found = {finding.topic: finding for finding in doctor.check_packages()}
    assert found["torch"].level == "problem" and "2.1.0" in found["torch"].what
    assert found["torch"].fix.startswith(f'"{sys.executable}" -m pip install')
    assert found["numpy"].level == "ok"  # 1.26.4 satisfies >= 1.26
    assert found["pillow"].level == "problem" and "not installed" in found["pillow"].what


@pytest.mark.parametrize(("card", "level"), [(None, "warning"), ("RTX 9000", "problem")])
def test_two_onnxruntimes_are_a_trap(monkeypatch, card, level) -> None:
    both = {"onnxruntime": "1.0", "onnxruntime-gpu": "1.0"}
    monkeypatch.setattr(providers, "onnxruntime_packages", lambda: both)
    monkeypatch.setattr(providers, "cuda_card", lambda: card)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    (finding,) = doctor.check_onnxruntime()
    assert finding.level == level
    assert "overwrite each other" in finding.what
    assert "uninstall -y onnxruntime onnxruntime-gpu" in finding.fix
    assert finding.fix.endswith("pip install " + ("onnxruntime-gpu" if card else "onnxruntime"))


def test_no_onnxruntime_at_all(monkeypatch) -> None:
    monkeypatch.setattr(providers, "onnxruntime_packages", dict)
    (finding,) = doctor.check_onnxruntime()
    assert finding.level == "problem" and finding.fix.endswith("pip install onnxruntime")


def test_a_broken_checkpoint_is_a_problem_with_its_own_words(monkeypatch, tmp_path) -> None:
    whole = model.EMBEDDED_CHECKPOINT.read_bytes()
    broken = tmp_path / "difflora.safetensors"
    broken.write_bytes(whole[:-100])
    monkeypatch.setattr(model, "EMBEDDED_CHECKPOINT", broken)
    for check in (doctor.check_embedded_checkpoint, doctor.check_embedded_base_model):
        (finding,) = attempt("checkpoint", check)
        assert finding.level == "problem" and "truncated" in finding.what


def test_a_check_that_fails_is_a_finding() -> None:
    def check():
        raise AttributeError("module compiled against another numpy")

    (finding,) = attempt("face models", check)
    assert finding.level == "problem" and "another numpy" in finding.what and finding.fix

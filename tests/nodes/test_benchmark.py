"""The benchmark's part that runs in ComfyUI, on a narrow SDXL."""

import json

import pytest

from training import benchmark

pytestmark = pytest.mark.host


def test_mini_run(comfyui, tmp_path):
    options = "--size mini --parts host --host-rounds 2 --host-steps 2 --host-px 64"
    host = ["--comfyui", str(comfyui.root), "--comfyui-python", comfyui.python]
    benchmark.main([*options.split(), *host, "--out", str(tmp_path)])
    report = json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8"))
    seconds = report["host"]["seconds"]
    for way in ("ours", "core"):
        whole = seconds[f"apply.{way}"]["all"]
        parts = zip(*(seconds[f"apply.{way}.{part}"]["all"] for part in ("build", "patch")), strict=True)
        assert whole == pytest.approx([sum(both) for both in parts], abs=1e-4)
        assert len(whole) == 2
    assert len(seconds["step.merged"]["all"]) == len(seconds["step.plain"]["all"]) == 8  # 2 x 2 x 2
    assert report["ratios"].keys() == {"apply / core", "step merged / plain"}

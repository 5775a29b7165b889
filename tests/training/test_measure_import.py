"""The measurement imports what it says, with the sizes of the real thing."""

import json

import pytest

from training import measure_import

pytest.importorskip("diffusers")


def test_sizes_are_the_published_ones():
    layout = measure_import.sd15_layout()
    assert layout.num_parameters == 99_648  # published
    assert layout.modules[4].in_features == 320 and layout.modules[3].in_features == 768


def test_report_names_the_machine_and_derives_the_whole_import(tmp_path):
    measure_import.main(
        ["--rows", "6", "--batch", "4", "--preset", "tiny", "--out", str(tmp_path / "report.json")]
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["rows"] == 6 and report["machine"]
    assert report["source_mb"] == pytest.approx(6 * 99_648 * 4 / 1e6, rel=0.01)
    assert report["rows_per_second"] == pytest.approx(6 / report["seconds"])
    assert report["derived_minutes_for_64974_rows"] == pytest.approx(64_974 / report["rows_per_second"] / 60)
    assert report["peak_rss_mb"] >= report["rss_of_libraries_mb"] > 0
    assert report["lae_step"]["cpu_seconds"] > 0

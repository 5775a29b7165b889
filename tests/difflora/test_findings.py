"""Findings as people and programs read them."""

from difflora.findings import Finding, to_text


def test_text_is_aligned_and_fixes_stand_below() -> None:
    findings = [
        Finding("ok", "python", "3.11"),
        Finding("problem", "onnxruntime", "is not installed", "get it"),
    ]
    first, second, fix, last = to_text(findings).splitlines()
    assert first.index("3.11") == second.index("is not") == fix.index("get it")
    assert second.startswith("PROBLEM") and last == "1 problem"

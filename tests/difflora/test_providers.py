"""Which execution provider is taken, and what the owner of an idle CUDA card is told."""

import sys

import pytest

from difflora import providers
from difflora.errors import FaceModelError
from difflora.providers import choose_providers, cuda_advice, install_command, onnxruntime_packages

CPU, CUDA, ROCM, COREML = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "ROCM", "CoreML"))


def test_the_best_that_is_there_with_the_cpu_behind_it() -> None:
    assert choose_providers(None, [CPU]) == [CPU]
    assert choose_providers(None, ["TensorrtExecutionProvider", CUDA, CPU]) == [CUDA, CPU]
    assert choose_providers(None, [ROCM, CPU]) == [ROCM, CPU]
    assert choose_providers(None, [COREML, CPU]) == [CPU]  # only when asked for
    assert choose_providers("CoreML", [COREML, CPU]) == [COREML, CPU]
    assert choose_providers([CPU], [CUDA, CPU]) == [CPU]


def test_a_missing_provider_is_an_error_with_the_command() -> None:
    with pytest.raises(
        FaceModelError, match=r"no CUDAExecutionProvider here, only CPU.*install onnxruntime-gpu"
    ):
        choose_providers("CUDA", [CPU])


def test_this_environment_has_one_onnxruntime() -> None:
    packages = onnxruntime_packages()
    assert len(packages) == 1
    assert next(iter(packages)).startswith("onnxruntime")


def test_the_command_is_for_the_running_python() -> None:
    assert install_command("onnxruntime-gpu", ["a", "b"]) == (
        f'"{sys.executable}" -m pip uninstall -y a b && "{sys.executable}" -m pip install onnxruntime-gpu'
    )


@pytest.mark.parametrize(
    ("available", "in_use", "words"),
    [
        ([CPU], None, "has no CUDA provider"),
        ([CUDA, CPU], [CPU], "cannot start CUDA"),
        ([CUDA, CPU], None, None),
        ([CUDA, CPU], [CUDA, CPU], None),
    ],
)
def test_advice_only_where_a_card_is_idle(available, in_use, words) -> None:
    assert cuda_advice(None, available, in_use) is None
    advice = cuda_advice("RTX 9000", available, in_use)
    assert (advice is None) == (words is None)
    if words is not None:
        assert words in advice and "RTX 9000" in advice and "pip install" in advice


def test_both_packages_at_once_are_named_and_removed(monkeypatch) -> None:
    monkeypatch.setattr(
        providers, "onnxruntime_packages", lambda: {"onnxruntime": "1.0", "onnxruntime-gpu": "1.0"}
    )
    advice = cuda_advice("RTX 9000", [CPU])
    assert "onnxruntime and onnxruntime-gpu overwrite each other's files" in advice
    assert "uninstall -y onnxruntime onnxruntime-gpu && " in advice
    assert advice.endswith("pip install onnxruntime-gpu")

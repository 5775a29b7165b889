"""Execution providers of onnxruntime: which ones are there, which one to take, and how to get a missing one.

`onnxruntime` and `onnxruntime-gpu` (and a few more) are separate packages with the same files: whichever was
installed last is the one that runs, and pip does not notice.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Sequence

import torch

from .errors import FaceModelError

CPU, CUDA = "CPU", "CUDA"
PROVIDERS = {
    CPU: "CPUExecutionProvider",
    CUDA: "CUDAExecutionProvider",
    "ROCm": "ROCMExecutionProvider",
    "MIGraphX": "MIGraphXExecutionProvider",
    "DirectML": "DmlExecutionProvider",
    "CoreML": "CoreMLExecutionProvider",
    "OpenVINO": "OpenVINOExecutionProvider",
}
"""What users call them -> what onnxruntime calls them."""
AUTOMATIC = (CUDA, "ROCm", CPU)
"""Taken without being asked for, best first. The others compile every picture size anew."""
PACKAGE_FOR = {
    CUDA: "onnxruntime-gpu",
    "ROCm": "onnxruntime-rocm",
    "MIGraphX": "onnxruntime-migraphx",
    "DirectML": "onnxruntime-directml",
    "OpenVINO": "onnxruntime-openvino",
}
"""Where a provider is not in the plain `onnxruntime` package."""
GPU_WITH_LIBRARIES = '"onnxruntime-gpu[cuda,cudnn]"'
"""Brings CUDA and cuDNN too; some shells read brackets, so it is quoted."""


def onnxruntime_packages() -> dict[str, str]:
    """Installed packages that put files into the `onnxruntime` module: name -> version."""
    names = importlib.metadata.packages_distributions().get("onnxruntime", [])
    return {name: importlib.metadata.version(name) for name in sorted(set(names))}


def cuda_card() -> str | None:
    """Name of the first CUDA card that torch sees, None without one."""
    if torch.version.cuda is None or not torch.cuda.is_available():  # torch for ROCm answers as cuda too
        return None
    return torch.cuda.get_device_name(0)


def install_command(wanted: str, installed: Sequence[str] = ()) -> str:
    """What to type so that exactly one onnxruntime is left, in the Python that runs now.

    Args:
        wanted: package to end up with.
        installed: packages to remove first, because they share its files.
    """
    pip = f'"{sys.executable}" -m pip'
    remove = f"{pip} uninstall -y {' '.join(installed)} && " if installed else ""
    return f"{remove}{pip} install {wanted}"


def choose_providers(requested: str | Sequence[str] | None, available: Sequence[str]) -> list[str]:
    """Provider names for a session, the wanted one first and the CPU behind it.

    Args:
        requested: a key of ``PROVIDERS``, onnxruntime's own names, or None for the best of ``AUTOMATIC``.
        available: what this onnxruntime was built with.

    Returns:
        Names as onnxruntime knows them.

    Raises:
        FaceModelError: a requested provider is not available; the message has the command that installs it.
    """
    if requested is None:
        wanted = next((PROVIDERS[name] for name in AUTOMATIC if PROVIDERS[name] in available), PROVIDERS[CPU])
        names = [wanted]
    else:
        names = [
            PROVIDERS.get(name, name) for name in ([requested] if isinstance(requested, str) else requested)
        ]
    for name in names:
        if name not in available:
            short = next((key for key, value in PROVIDERS.items() if value == name), name)
            raise FaceModelError(
                f"onnxruntime has no {name} here, only {', '.join(available)}: choose another, or run "
                f"{install_command(PACKAGE_FOR.get(short, 'onnxruntime'), list(onnxruntime_packages()))}"
            )
    return list(dict.fromkeys([*names, PROVIDERS[CPU]]))


def cuda_advice(
    card: str | None, available: Sequence[str], in_use: Sequence[str] | None = None
) -> str | None:
    """What to tell the owner of a CUDA card whose faces are found on the CPU: a sentence with the command.

    Args:
        card: its name; None means there is none, and nothing to say.
        available: providers that onnxruntime was built with.
        in_use: providers of a running session that asked for CUDA, None if there is none yet.

    Returns:
        The sentence, or None when all is well.
    """
    cuda = PROVIDERS[CUDA]
    if card is None or (cuda in available and (in_use is None or cuda in in_use)):
        return None
    packages = list(onnxruntime_packages())
    if cuda in available:
        return (
            f"onnxruntime cannot start CUDA on {card} (its CUDA or cuDNN libraries are missing or of another "
            f"version), so faces are found on the CPU: run "
            f"{install_command(GPU_WITH_LIBRARIES, packages)}"
        )
    both = f" ({' and '.join(packages)} overwrite each other's files)" if len(packages) > 1 else ""
    return (
        f"there is a CUDA card ({card}), but onnxruntime has no CUDA provider{both}, so faces are found on "
        f"the CPU: run {install_command(PACKAGE_FOR[CUDA], packages)}"
    )

"""A pack's detector and recogniser in memory, through insightface, on the best provider that works."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import DiffLoRAWarning, FaceModelError
from .face_packs import DETECTION, PACK_HINT, RECOGNITION, has_manifest, pack_files
from .providers import CUDA, PROVIDERS, choose_providers, cuda_advice, cuda_card

QUIET = 3
"""onnxruntime's level for errors only; below it, every session says which operators it moved to the CPU."""
TASKS = {DETECTION: "detector", RECOGNITION: "recogniser"}


@dataclass(frozen=True)
class FaceModels:
    """insightface's objects for one pack.

    Args:
        detector: ``SCRFD``.
        recogniser: ``ArcFaceONNX``.
        face_align: the module with ``estimate_norm`` and ``norm_crop``.
    """

    detector: Any
    recogniser: Any
    face_align: Any

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers that are really in use, best first."""
        return tuple(self.recogniser.session.get_providers())


def load_face_models(folder: Path, providers: str | Sequence[str] | None = None) -> FaceModels:
    """Load the two models that are needed, and no other file of the pack.

    Args:
        folder: that holds the ONNX files.
        providers: a key of ``PROVIDERS`` such as "CPU", or onnxruntime's names; None means the best that
            works, with a ``DiffLoRAWarning`` if that leaves a CUDA card idle.

    Returns:
        The models.

    Raises:
        FaceModelError: a package, a file or a provider that was asked for is missing or does not work.
    """
    try:
        import onnxruntime
        from insightface.model_zoo import get_model
        from insightface.utils import face_align
    except ImportError as error:
        raise FaceModelError(
            f"the face models need two packages ({error}): pip install insightface onnxruntime"
        ) from error
    available = onnxruntime.get_available_providers()
    chosen = choose_providers(providers, available)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    try:
        models = _load(folder, get_model, {"providers": chosen, "sess_options": options})
    except FaceModelError:
        raise
    except Exception as error:  # onnxruntime's own errors share no base class; insightface asserts
        raise FaceModelError(
            f"the face pack {folder} cannot be loaded ({type(error).__name__}: {error}): "
            "it needs an intact detector and recogniser as .onnx files; download it again"
        ) from error
    loaded = FaceModels(models[DETECTION], models[RECOGNITION], face_align)
    _check_providers(chosen[0], providers is not None, available, loaded.providers)
    return loaded


def _load(folder: Path, get_model: Callable[..., Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Task -> insightface's model."""
    if has_manifest(folder):  # insightface knows which file is what, and checks them
        return {task: get_model(str(folder), model_task=task, **settings) for task in TASKS}
    files = pack_files(folder)
    for task, what in TASKS.items():
        if task not in files:
            raise FaceModelError(f"the face pack {folder} has no {what}: {PACK_HINT}")
    return {task: get_model(str(files[task]), **settings) for task in TASKS}


def _check_providers(wanted: str, asked_for: bool, available: Sequence[str], in_use: Sequence[str]) -> None:
    """Raise or warn when a session fell back to the CPU: onnxruntime writes a log line at most."""
    if asked_for and wanted not in in_use:
        advice = cuda_advice(cuda_card() or "this machine", available, in_use)
        hint = advice if wanted == PROVIDERS[CUDA] else None
        raise FaceModelError(hint or f"onnxruntime cannot start {wanted} here: choose another provider")
    advice = None if asked_for else cuda_advice(cuda_card(), available, in_use)
    if advice is not None:
        warnings.warn(advice, DiffLoRAWarning, stacklevel=4)

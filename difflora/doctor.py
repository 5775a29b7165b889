"""What works here, what does not, and the command that repairs it.

Every check is a function that returns findings and never raises: a doctor who falls ill helps nobody.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .errors import CheckpointError, DiffLoRAError, DiffLoRAWarning
from .face_packs import DEFAULT_FOLDERS, search_face_packs, searched_places
from .findings import Finding, Level
from .own_checkpoints import TOPIC, check_own_checkpoints

MIN_PYTHON = (3, 10)
REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements.txt"
"""What the library needs, where it runs from a checkout or as a node pack; else its own metadata say it."""
OPTIONAL = {
    "diffusers": "the demo, candidates and training",
    "transformers": "the demo, candidates and training",
    "peft": "comparing LoRA files with other readers",
}
"""Packages that ComfyUI's users can do without -> what needs them."""
LITTLE_MEMORY = 2 * 1024**3
"""Bytes below which loading an SDXL model beside ours is likely to fail."""


def examine(
    face_folders: Sequence[str | Path] = DEFAULT_FOLDERS,
    checkpoints: Sequence[Path] = (),
    encoder_folders: Sequence[str | Path] = (),
) -> tuple[Finding, ...]:
    """Look at everything.

    Args:
        face_folders: where insightface packs are looked for.
        checkpoints: the user's own DiffLoRA checkpoints.
        encoder_folders: where the image encoders that they name are looked for.

    Returns:
        Findings, in the order in which somebody would repair them.
    """
    checks: tuple[tuple[str, Callable[[], Iterable[Finding]]], ...] = (
        ("python", check_python),
        ("packages", check_packages),
        ("torch", check_torch),
        ("onnxruntime", check_onnxruntime),
        ("face packs", lambda: check_face_packs(face_folders)),
        ("face models", check_face_models),
        ("checkpoint", check_embedded_checkpoint),
        ("base model", check_embedded_base_model),
        (TOPIC, lambda: check_own_checkpoints(checkpoints, face_folders, encoder_folders)),
        ("memory", check_memory),
    )
    return tuple(finding for topic, check in checks for finding in attempt(topic, check))


def attempt(topic: str, check: Callable[[], Iterable[Finding]]) -> tuple[Finding, ...]:
    """The findings of a check, or the error that stopped it as a finding."""
    try:
        return tuple(check())
    except DiffLoRAError as error:
        return (Finding("problem", topic, str(error)),)
    except Exception as error:  # whatever a broken package raises while it is imported
        return (
            Finding(
                "problem",
                topic,
                f"the check itself failed ({type(error).__name__}: {error})",
                f'"{sys.executable}" -m pip install --upgrade --force-reinstall -r "{REQUIREMENTS}"',
            ),
        )


def check_python() -> list[Finding]:
    """The interpreter and the system."""
    what = f"{platform.python_version()} on {platform.platform()} ({sys.executable})"
    if sys.version_info < MIN_PYTHON:
        need = ".".join(map(str, MIN_PYTHON))
        return [Finding("problem", "python", what, f"install Python {need} or newer")]
    return [Finding("ok", "python", what)]


def requirements() -> dict[str, str]:
    """Packages that the library needs -> least version, from the one place that says it."""
    if REQUIREMENTS.is_file():
        lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    else:
        lines = [line for line in importlib.metadata.requires("difflora") or [] if "extra ==" not in line]
    found = (re.match(r"([\w.-]+)\s*>=\s*([\d.]+)", line) for line in lines)
    return {match[1]: match[2] for match in found if match is not None}


def check_packages() -> list[Finding]:
    """Versions of what is needed and of what is optional."""
    findings = []
    for name, least in requirements().items():
        version = _version(name)
        if version is None and name == "onnxruntime":
            continue  # may be there under another name: see its own check
        fix = f'"{sys.executable}" -m pip install --upgrade "{name}>={least}"'
        if version is None:
            findings.append(Finding("problem", name, f"is not installed, {least} or newer is needed", fix))
        elif _numbers(version) < _numbers(least):
            findings.append(Finding("problem", name, f"{version} is too old, {least} is needed", fix))
        else:
            findings.append(Finding("ok", name, version))
    for name, purpose in OPTIONAL.items():
        version = _version(name)
        findings.append(Finding("ok", name, version or f"not installed; only needed for {purpose}"))
    return findings


def check_torch() -> list[Finding]:
    """Which device torch can use."""
    import torch

    if torch.cuda.is_available():
        kind = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        return [Finding("ok", "torch device", f"{torch.cuda.get_device_name(0)} ({kind})")]
    if torch.backends.mps.is_available():
        return [Finding("ok", "torch device", "Apple GPU (MPS)")]
    return [Finding("ok", "torch device", "CPU only: torch sees no GPU")]


def check_onnxruntime() -> list[Finding]:
    """The packages that call themselves onnxruntime, and what they can run on."""
    from .providers import CUDA, PROVIDERS, cuda_advice, cuda_card, install_command, onnxruntime_packages

    packages = onnxruntime_packages()
    names = ", ".join(f"{name} {version}" for name, version in packages.items())
    wanted = "onnxruntime-gpu" if cuda_card() else "onnxruntime"
    if not packages:
        return [Finding("problem", "onnxruntime", "is not installed", install_command(wanted))]
    import onnxruntime

    available = onnxruntime.get_available_providers()
    can = f"{names}; providers: {', '.join(available)}"
    if len(packages) > 1:
        says = f"{names} are installed and overwrite each other's files; providers: {', '.join(available)}"
        level: Level = "warning" if PROVIDERS[CUDA] in available or not cuda_card() else "problem"
        return [Finding(level, "onnxruntime", says, install_command(wanted, list(packages)))]
    advice = cuda_advice(cuda_card(), available)
    if advice is not None:
        return [Finding("warning", "onnxruntime", advice, install_command(wanted, list(packages)))]
    return [Finding("ok", "onnxruntime", can)]


def check_face_packs(folders: Sequence[str | Path]) -> list[Finding]:
    """Packs of insightface for real photos, and every path that was searched."""
    places = searched_places(folders)
    searched = ", ".join(str(place) if place.is_dir() else f"{place} (no such folder)" for place in places)
    packs = search_face_packs(folders)
    if not packs:
        fix = f"for real photos unpack antelopev2.zip or buffalo_l.zip of insightface into {places[0]}"
        what = f"none; the built-in one knows rendered people only; searched {searched}"
        return [Finding("ok", "face packs", what, fix)]
    found = "; ".join(f"{pack.name} in {pack.folder}" for pack in packs)
    return [Finding("ok", "face packs", f"{found}; searched {searched}")]


def check_face_models() -> list[Finding]:
    """The built-in face pack and image encoder, loaded as for a photo, and where they really run."""
    from .faces import FaceAnalyzer
    from .features import ImageEncoder
    from .synthetic.world import FACE_PACK, IMAGE_ENCODER

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DiffLoRAWarning)
        analyzer = FaceAnalyzer(FACE_PACK)
    slow = [str(entry.message) for entry in caught if issubclass(entry.category, DiffLoRAWarning)]
    level: Level = "warning" if slow else "ok"
    runs = f"pack {analyzer.name} loads; faces are found with {analyzer.providers[0]}"
    encoder = ImageEncoder(IMAGE_ENCODER)
    return [
        Finding(level, "face models", runs, " ".join(slow)),
        Finding("ok", "image encoder", f"{encoder.folder.name} loads, {encoder.width} features"),
    ]


def check_embedded_checkpoint() -> list[Finding]:
    """The built-in checkpoint, with the face models that it names."""
    from .model import DiffLoRA

    model = DiffLoRA.load()
    layout = model.layout
    what = f"built-in one loads: LoRAs of rank {layout.rank} for {len(layout.modules)} modules of "
    return [Finding("ok", "checkpoint", what + model.checkpoint.base_model)]


def check_embedded_base_model() -> list[Finding]:
    """Whether the built-in base model has the modules that the built-in checkpoint makes LoRAs for."""
    from safetensors import SafetensorError, safe_open

    from .checkpoint import load_checkpoint
    from .model import EMBEDDED_CHECKPOINT
    from .synthetic.world import BASE_MODEL

    weights = BASE_MODEL / "unet" / "diffusion_pytorch_model.safetensors"
    try:
        with safe_open(weights, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the built-in base model {weights} cannot be read ({error}): clone the repository again"
        ) from error
    for module in load_checkpoint(EMBEDDED_CHECKPOINT).layout.modules:
        expected = (module.out_features, module.in_features)
        found = shapes.get(f"{module.name}.weight")
        if found is None or found[:2] != expected:
            raise CheckpointError(
                f"the built-in checkpoint and base model do not fit: {module.name} is {found}, not "
                f"{expected}: clone the repository again"
            )
    return [Finding("ok", "base model", f"{BASE_MODEL.name} fits the checkpoint")]


def check_memory() -> list[Finding]:
    """Free memory of the machine and of the GPU."""
    import torch

    free = {"system": free_memory()}
    if torch.cuda.is_available():
        free["GPU"] = torch.cuda.mem_get_info()[0]
    findings = []
    for where, size in free.items():
        if size is None:
            findings.append(Finding("ok", "memory", f"{where}: unknown here"))
            continue
        level: Level = "warning" if size < LITTLE_MEMORY else "ok"
        fix = "close other programs; start ComfyUI with --lowvram" if level == "warning" else ""
        findings.append(Finding(level, "memory", f"{where}: {size / 1024**3:.1f} GB free", fix))
    return findings


def free_memory() -> int | None:
    """Bytes of main memory that programs can still get; None where nobody says."""
    try:
        import psutil
    except ImportError:
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):  # Windows, macOS
            return None
    return int(psutil.virtual_memory().available)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])

"""The DiffLoRA checkpoint: ONE `.safetensors` with all weights and everything needed to use them.

Tensors: `networks.*` (LAE, MIF, DiT, latent and weight statistics), `shared_down.<module>`, and
`base_sketch.*` (not in files of the first version). The header
holds one JSON text: format, configurations, layout with its fingerprint, the names of the base model, the
face pack and the image encoder, and the settings that were best on validation people.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from .autoencoder import LaeConfig
from .base_sketch import BaseSketch
from .diffusion import DiffusionConfig
from .errors import CheckpointError, DiffLoRAError, LayoutError
from .files import load_safetensors, read_safetensors_header, save_safetensors
from .hypernetwork import HypernetworkConfig, LoraHypernetwork
from .layout import LoraLayout, SharedDown, check_shapes
from .mixing import MifConfig
from .transformer import DitConfig

FORMAT = "difflora-1"
HEADER_KEY = "difflora"
NETWORK_PREFIX, DOWN_PREFIX = "networks.", "shared_down."
SKETCH_KEYS = ("base_sketch.projections", "base_sketch.squared_norms")
STATISTICS = ("latent_mean", "latent_std", "weight_mean", "weight_rms")
"""Small and of any magnitude: always kept in float32."""
PATH_BASIS = "lae.linear_path.basis"
"""Large, and of numbers around 1: eight bits hold it at 0.0007 of the explained variance."""

NO_FIT = "weights do not fit its own configuration: get the file again, it is damaged or of another version"

Config = TypeVar("Config")


@dataclass(frozen=True)
class Recommended:
    """Settings that were best on validation people.

    Args:
        strength: multiplier of the LoRA.
        num_steps: sampler steps. More than a few gain nothing (docs/decisions.md).
        guidance_scale: classifier-free guidance, 1 is none.
        noise_scale: of the starting noise: 1 samples, 0 follows the mean prediction.
    """

    strength: float = 1.0
    num_steps: int = 4
    guidance_scale: float = 1.0
    noise_scale: float = 1.0


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a DiffLoRA checkpoint holds.

    Args:
        networks: LAE, MIF and DiT (averaged weights) with their statistics.
        shared_down: module -> lora_down (R, in) of the library; None if the layout trains lora_down.
        base_model: name of the base model that the LoRAs are for.
        face_pack: name of the insightface model pack.
        image_encoder: name of the CLIP vision tower.
        recommended: best settings.
        base_sketch: of the base model's adapted weights; None in files that were written without it.
    """

    networks: LoraHypernetwork
    shared_down: SharedDown | None
    base_model: str
    face_pack: str
    image_encoder: str
    recommended: Recommended = field(default_factory=Recommended)
    base_sketch: BaseSketch | None = None

    @property
    def layout(self) -> LoraLayout:
        """What a LoRA of this checkpoint is."""
        return self.networks.layout


@dataclass(frozen=True)
class CheckpointFacts:
    """What a checkpoint says about itself, as in `Checkpoint`."""

    layout: LoraLayout
    base_model: str
    face_pack: str
    image_encoder: str


def config_from_fields(kind: type[Config], values: object) -> Config:
    """Build a configuration from the JSON object of its fields; a missing field has its default.

    Raises:
        CheckpointError: an unknown key (a newer version wrote it), or values that do not fit.
    """
    if not isinstance(values, Mapping):
        raise CheckpointError(
            f"the checkpoint's {kind.__name__} is not an object: the file is damaged, get it again"
        )
    known = {entry.name for entry in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise CheckpointError(
            f"the checkpoint's {kind.__name__} has unknown keys {', '.join(unknown)}: update this package"
        )
    try:
        return kind(**values)
    except (TypeError, DiffLoRAError) as error:
        raise CheckpointError(
            f"the checkpoint's {kind.__name__} cannot be used ({error}): update this package"
        ) from error


def hypernetwork_config(values: object) -> HypernetworkConfig:
    """Build the nested configuration of all parts from JSON, strictly."""
    parts = {"lae": LaeConfig, "mif": MifConfig, "dit": DitConfig, "diffusion": DiffusionConfig}
    if not isinstance(values, Mapping):
        raise CheckpointError("the checkpoint has no configuration: the file is damaged, get it again")
    nested = {
        name: config_from_fields(parts[name], value) if name in parts else value
        for name, value in values.items()
    }
    return config_from_fields(HypernetworkConfig, nested)


def save_checkpoint(path: str | Path, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Path:
    """Write the file, atomically.

    Args:
        path: destination, `.safetensors`.
        checkpoint: what to write.
        dtype: of the networks' weights in the file; float16 halves it, and the components of the LAE's
            linear path take eight bits then. Statistics stay float32.

    Returns:
        The path.
    """
    stored = dict.fromkeys(STATISTICS, torch.float32)
    if dtype == torch.float16:
        stored[PATH_BASIS] = torch.float8_e4m3fn
    tensors: dict[str, Tensor] = {}
    for name, tensor in checkpoint.networks.state_dict().items():
        tensors[NETWORK_PREFIX + name] = tensor.to(stored.get(name, dtype))
    for name, down in (checkpoint.shared_down or {}).items():
        tensors[DOWN_PREFIX + name] = down.float()
    if (sketch := checkpoint.base_sketch) is not None:
        tensors |= dict(zip(SKETCH_KEYS, (sketch.projections, sketch.squared_norms), strict=True))
    header = {
        "format": FORMAT,
        "config": asdict(checkpoint.networks.config),
        "layout": checkpoint.layout.to_json(),
        "fingerprint": checkpoint.layout.fingerprint,
        "base_model": checkpoint.base_model,
        "face_pack": checkpoint.face_pack,
        "image_encoder": checkpoint.image_encoder,
        "recommended": asdict(checkpoint.recommended),
    }
    return save_safetensors(path, tensors, {HEADER_KEY: json.dumps(header, sort_keys=True)})


def load_checkpoint(
    path: str | Path,
    device: torch.device | str = "cpu",
    layout: LoraLayout | None = None,
    dtype: torch.dtype = torch.float32,
) -> Checkpoint:
    """Read and check a checkpoint.

    Args:
        path: the file.
        device: where the networks go.
        layout: what the LoRAs must fit, e.g. a library's; by default whatever the checkpoint says.
        dtype: of the networks; bfloat16 halves their memory. Statistics stay float32.

    Returns:
        The checkpoint, its networks in evaluation mode and frozen.

    Raises:
        CheckpointError: missing, truncated, foreign or newer file, or made for another layout.
    """
    tensors, metadata = load_safetensors(path)  # on the CPU: not every device knows eight bits
    header = _read_header(path, metadata)
    own_layout = _read_layout(path, header)
    if layout is not None and layout.fingerprint != own_layout.fingerprint:
        raise CheckpointError(
            f"{path} makes LoRAs for {header['base_model']} (layout {own_layout.fingerprint}), not for "
            f"the layout {layout.fingerprint} asked for: use a checkpoint trained for that one"
        )
    networks = LoraHypernetwork(own_layout, hypernetwork_config(header["config"]))
    networks = networks.to_precision(dtype).to(device)
    try:
        networks.load_state_dict(
            {
                name.removeprefix(NETWORK_PREFIX): tensor
                for name, tensor in tensors.items()
                if name.startswith(NETWORK_PREFIX)
            }
        )
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {NO_FIT}") from error
    return Checkpoint(
        networks.train(False).requires_grad_(False),
        _read_shared_down(path, tensors, own_layout, device),
        header["base_model"],
        header["face_pack"],
        header["image_encoder"],
        config_from_fields(Recommended, header["recommended"]),
        _read_sketch(path, tensors, own_layout),
    )


def inspect_checkpoint(path: str | Path) -> CheckpointFacts:
    """What a checkpoint is for and needs, in milliseconds: its header is read, and no weight.

    Raises:
        CheckpointError: missing, truncated, foreign or newer file.
    """
    shapes, metadata = read_safetensors_header(path)
    header = _read_header(path, metadata)
    layout = _read_layout(path, header)
    hypernetwork_config(header["config"])
    if not any(name.startswith(NETWORK_PREFIX) for name in shapes):
        raise CheckpointError(f"{path}: {NO_FIT}")
    return CheckpointFacts(layout, header["base_model"], header["face_pack"], header["image_encoder"])


def _read_layout(path: str | Path, header: Mapping[str, Any]) -> LoraLayout:
    try:
        layout = LoraLayout.from_json(header["layout"])
    except LayoutError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if layout.fingerprint != header["fingerprint"]:
        raise CheckpointError(
            f"{path}: its layout has the fingerprint {layout.fingerprint}, its header says "
            f"{header['fingerprint']}: the file is damaged, get it again"
        )
    return layout


def _read_header(path: str | Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if HEADER_KEY not in metadata:
        raise CheckpointError(
            f"{path} is not a DiffLoRA checkpoint: choose a file that training/train_dit.py wrote"
        )
    try:
        header = json.loads(metadata[HEADER_KEY])
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: damaged header ({error}): get the file again") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else None
        raise CheckpointError(
            f"{path} has the format {found!r}, this version reads {FORMAT!r}: update this package"
        )
    expected = {
        "format",
        "config",
        "layout",
        "fingerprint",
        "base_model",
        "face_pack",
        "image_encoder",
        "recommended",
    }
    if set(header) != expected:
        raise CheckpointError(
            f"{path}: missing {sorted(expected - set(header))}, unknown {sorted(set(header) - expected)} in "
            "its header: update this package or get the file again"
        )
    return header


def _read_shared_down(
    path: str | Path, tensors: Mapping[str, Tensor], layout: LoraLayout, device: torch.device | str
) -> SharedDown | None:
    down = {
        name.removeprefix(DOWN_PREFIX): tensor.to(device)
        for name, tensor in tensors.items()
        if name.startswith(DOWN_PREFIX)
    }
    if layout.train_down and not down:
        return None
    try:
        check_shapes({m.name: (layout.rank, m.in_features) for m in layout.modules}, down)
    except LayoutError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return down


def _read_sketch(path: str | Path, tensors: Mapping[str, Tensor], layout: LoraLayout) -> BaseSketch | None:
    parts = [tensors[key] for key in SKETCH_KEYS if key in tensors]
    if not parts:
        return None
    if len(parts) != len(SKETCH_KEYS) or len(parts[0]) != len(layout.modules):
        raise CheckpointError(f"{path}: its sketch of the base model is damaged: get the file again")
    try:
        return BaseSketch(*parts)
    except LayoutError as error:
        raise CheckpointError(f"{path}: {error}") from error

"""A person in a file, without any photo: features, perhaps the chosen LoRA latent, a note about consent.

Tensors: `face_embedding`, `image_features`, perhaps `weights` and `latent`. The header holds one JSON text
with the format, the encoders' names and fingerprints, the note, and how the latent was made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .errors import CheckpointError, DiffLoRAError
from .features import Encoders, IdentityFeatures, check_encoders
from .files import load_safetensors, save_safetensors
from .latents import LoraLatent
from .model import DiffLoRA

FORMAT = "difflora-identity-1"
HEADER_KEY = "difflora_identity"
SUFFIX = ".safetensors"
MAX_NAME = 100
FORBIDDEN = frozenset('<>:"/\\|?*')
"""Characters that one of the common file systems refuses, or that lead to another folder."""
RESERVED = frozenset({"con", "prn", "aux", "nul", *(f"{n}{i}" for n in ("com", "lpt") for i in range(1, 10))})
"""File names that Windows keeps for devices."""
Existing = Literal["number", "error", "overwrite"]


@dataclass(frozen=True, eq=False)
class Identity:
    """What an identity file holds.

    Args:
        features: of the used photos, with the encoders that made them.
        latent: the LoRA latent that was chosen for this person, if any.
        note: who agreed to what, in the user's words.
    """

    features: IdentityFeatures
    latent: LoraLatent | None = None
    note: str = ""


def identity_file_name(name: str) -> str:
    """The file name of an identity that a user calls `name`.

    Raises:
        DiffLoRAError: it would lie in another folder, or some file system refuses it.
    """
    stem = name.strip().removesuffix(SUFFIX)
    unusable = sorted({c for c in stem if c in FORBIDDEN or not c.isprintable()})
    if not stem or unusable or stem[0] == "." or stem[-1] in ". " or len(stem) > MAX_NAME:
        raise DiffLoRAError(
            f"{name!r} cannot be the name of an identity: use 1 to {MAX_NAME} characters without "
            f"{' '.join(sorted(FORBIDDEN))}, and no dot at either end"
        )
    if stem.split(".")[0].lower() in RESERVED:
        raise DiffLoRAError(f"{name!r} is a name that Windows keeps for devices: use another one")
    return stem + SUFFIX


def save_identity(path: str | Path, identity: Identity, existing: Existing = "number") -> Path:
    """Write the file, atomically. A file that holds the very same identity is left as it is.

    Args:
        path: destination, `.safetensors`.
        identity: whom; its photos' reports are left out, so that nothing of the photos themselves remains.
        existing: what to do if there is such a file: "number" keeps both (`anna_2`), "error", "overwrite".

    Returns:
        Where it was written.

    Raises:
        DiffLoRAError: the encoders of the features are unknown, or the file exists with "error".
    """
    if existing not in get_args(Existing):
        raise DiffLoRAError(f"existing={existing!r}: use one of {', '.join(get_args(Existing))}")
    tensors, header = _to_file(identity)
    path = Path(path)
    candidate, number = path, 2
    while candidate.exists() and existing != "overwrite":
        if _holds(candidate, tensors, header):
            return candidate
        if existing == "error":
            raise DiffLoRAError(f"{path} exists and is somebody else or another version: use another name")
        candidate = path.with_name(f"{path.stem}_{number}{path.suffix}")
        number += 1
    return save_safetensors(candidate, tensors, {HEADER_KEY: header})


def load_identity(path: str | Path, model: DiffLoRA | None = None) -> Identity:
    """Read an identity.

    Args:
        path: file of `save_identity`.
        model: that is to use it; its encoders have to be those of the features.

    Raises:
        CheckpointError: missing, damaged or foreign file, or a newer format.
        DiffLoRAError: the features were made by other encoders, the latent by another autoencoder.
    """
    tensors, metadata = load_safetensors(path)
    header = _read_header(path, metadata)
    try:
        encoders = Encoders(**{entry.name: str(header["encoders"][entry.name]) for entry in fields(Encoders)})
        face, image = tensors["face_embedding"].float(), tensors["image_features"].float()  # (N, 512), (N, C)
        latent_header = header["latent"]
        settings = None if latent_header is None else dict(latent_header["settings"])
        autoencoder = None if latent_header is None else str(latent_header["autoencoder"])
        latent = tensors["latent"] if latent_header is not None else None  # (T, C)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}): save the identity again") from error
    weights = tensors.get("weights")  # (N,)
    if face.ndim != 2 or image.ndim != 2 or len(face) != len(image) or len(face) == 0:
        raise CheckpointError(
            f"{path} has features of the shapes {tuple(face.shape)} and {tuple(image.shape)}: save it again"
        )
    numbers = [tensor for tensor in (face, image, weights, latent) if tensor is not None]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in numbers):
        raise CheckpointError(f"{path} holds NaN or infinite numbers: save the identity again")
    features = IdentityFeatures(face, image, weights=weights, encoders=encoders)
    identity = Identity(features, note=str(header["note"]))
    if latent is not None and settings is not None and autoencoder is not None:
        identity = replace(identity, latent=LoraLatent(latent.float(), autoencoder, features, settings))
    if model is not None:
        try:
            check_encoders(encoders, model.encoders)
        except DiffLoRAError as error:
            raise DiffLoRAError(f"{path}: {error}") from error
    return identity


def _to_file(identity: Identity) -> tuple[dict[str, Tensor], str]:
    """Tensors and header of the file."""
    features, latent = identity.features, identity.latent
    if features.encoders is None:
        raise DiffLoRAError(
            "these features do not say which encoders made them, so the file could not be checked later: "
            "encode the photos with DiffLoRA.encode or Encode Reference Photos"
        )
    tensors = {"face_embedding": features.face_embedding, "image_features": features.image_features}
    if features.weights is not None:
        tensors["weights"] = features.weights
    if latent is not None:
        tensors["latent"] = latent.latent
    header = {
        "format": FORMAT,
        "encoders": asdict(features.encoders),
        "note": identity.note,
        "latent": None
        if latent is None
        else {"autoencoder": latent.autoencoder, "settings": dict(latent.settings)},
    }
    return {name: tensor.float().cpu() for name, tensor in tensors.items()}, json.dumps(
        header, sort_keys=True
    )


def _read_header(path: str | Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if HEADER_KEY not in metadata:
        raise CheckpointError(f"{path} is not an identity: choose a file that Save Identity wrote")
    try:
        header = json.loads(metadata[HEADER_KEY])
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: damaged header ({error}): save the identity again") from error
    found = header.get("format") if isinstance(header, dict) else None
    if found != FORMAT:
        raise CheckpointError(
            f"{path} has the format {found!r}, this version reads {FORMAT!r}: update this package"
        )
    missing = sorted({"encoders", "note", "latent"} - set(header))
    if missing:
        raise CheckpointError(f"{path}: its header lacks {', '.join(missing)}: save the identity again")
    return header


def _holds(path: Path, tensors: Mapping[str, Tensor], header: str) -> bool:
    """Whether a file has exactly this content."""
    try:
        there, metadata = load_safetensors(path)
    except CheckpointError:
        return False
    return (
        metadata.get(HEADER_KEY) == header
        and there.keys() == tensors.keys()
        and all(torch.equal(there[name], tensor) for name, tensor in tensors.items())
    )

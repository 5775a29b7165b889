"""What the header of a LoRA file says: kohya's `ss_*`, Stability's modelspec, and our own layout.

Sources: kohya-ss/sd-scripts `library/sai_model_spec.py` and `networks/lora.py`; Stability-AI/ModelSpec 1.0.0.
There is never a `modelspec.trigger_phrase`: the prompt names a person by a plain class word.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from safetensors.torch import save
from torch import Tensor

from .adapter_config import HEADER_KEY
from .layout import LoraLayout

LAYOUT_KEY = "difflora.layout"
FINGERPRINT_KEY = "difflora.layout_fingerprint"
STRENGTH_KEY = "difflora.recommended_strength"
TITLE_KEY = "modelspec.title"
DESCRIPTION_KEY = "modelspec.description"
# Of the file that the weights were read from; wrong for the one that is written.
STALE_KEYS = (HEADER_KEY, "sshs_legacy_hash", "modelspec.thumbnail")


@dataclass(frozen=True)
class BaseModelNames:
    """What tools call a base model.

    Args:
        kohya: `ss_base_model_version`.
        modelspec: `modelspec.architecture`, without `/lora`.
        civitai: base model of CivitAI and of LoRA Manager.
        resolution: side of a training picture, pixels.
    """

    kohya: str
    modelspec: str
    civitai: str
    resolution: int


BASE_MODELS = (
    BaseModelNames("sd_v1", "stable-diffusion-v1", "SD 1.5", 512),
    BaseModelNames("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", "SDXL 1.0", 1024),
)


def base_model_names(base_model: str) -> BaseModelNames | None:
    """Entry of the table by any of its names; None for a base model that other tools do not know."""
    return next((m for m in BASE_MODELS if base_model in (m.kohya, m.modelspec, m.civitai)), None)


def describe_lora(title: str, base_model: str, strength: float | None = None) -> dict[str, str]:
    """Metadata by which tools list a LoRA, group it by base model and tell how to use it.

    Args:
        title: for people; not a trigger word.
        base_model: by any of its names in `BASE_MODELS`, or another one, which is taken as it is.
        strength: a good strength, if one is known.

    Returns:
        For `Lora.metadata`.
    """
    names = base_model_names(base_model)
    metadata = {
        "ss_base_model_version": names.kohya if names else base_model,
        TITLE_KEY: title,
        "modelspec.architecture": f"{names.modelspec if names else base_model}/lora",
        "modelspec.implementation": "diffusers",
    }
    if names:
        metadata["modelspec.resolution"] = f"{names.resolution}x{names.resolution}"
    if strength is not None:
        metadata["modelspec.usage_hint"] = f"no trigger word; strength {strength:g}"
        metadata[STRENGTH_KEY] = f"{strength:g}"
    return metadata


def file_metadata(
    metadata: Mapping[str, str], layout: LoraLayout, tensors: Mapping[str, Tensor], name: str
) -> dict[str, str]:
    """Header of a file: what is known about the LoRA, and what follows from its weights.

    Args:
        metadata: of the LoRA.
        layout: of the tensors as they are in the file.
        tensors: key -> tensor, all that the file holds.
        name: of the file, without suffix.
    """
    content = save(dict(tensors))
    header = 8 + int.from_bytes(content[:8], "little")  # safetensors: u64 length, JSON header, data
    digest = hashlib.sha256(content[header:]).hexdigest()  # of the data only, as both conventions want it
    kept = {key: value for key, value in metadata.items() if key not in STALE_KEYS}
    return {
        **kept,
        "ss_output_name": name,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(layout.rank),
        "ss_network_alpha": str(layout.alpha),
        "sshs_model_hash": digest,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.hash_sha256": f"0x{digest}",
        LAYOUT_KEY: layout.to_json(),
        FINGERPRINT_KEY: layout.fingerprint,
    }

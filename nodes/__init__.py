"""The ComfyUI nodes of DiffLoRA: schema, one call into the library, wrap. ``_host`` knows ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import _host
from .apply_lora import ApplyLora
from .batch_people import BatchPeople
from .blend_identities import BlendIdentities
from .doctor import Doctor
from .encode_photos import EncodePhotos
from .generate_lora import GenerateLora
from .load_face_analysis import LoadFaceAnalysis
from .load_identity import LoadIdentity
from .load_model import LoadModel
from .lora_to_hooks import LoraToHooks
from .personalise import Personalise
from .save_identity import SaveIdentity
from .save_lora import SaveLora
from .similarity import Similarity
from .synthetic_world import LoadSyntheticWorld, SyntheticPeopleFolder, SyntheticPhotos


class DiffLoRAExtension(ComfyExtension):
    """What ComfyUI asks for the list of nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes of the pack."""
        return [
            *(LoadModel, LoadFaceAnalysis, EncodePhotos, GenerateLora, Personalise),
            *(SaveIdentity, LoadIdentity, BlendIdentities, Similarity),
            *(ApplyLora, LoraToHooks, SaveLora, BatchPeople),
            *(LoadSyntheticWorld, SyntheticPhotos, SyntheticPeopleFolder, Doctor),
        ]


async def comfy_entrypoint() -> ComfyExtension:
    """Called once by ComfyUI when it loads the pack."""
    _host.register_model_folder()
    return DiffLoRAExtension()

"""Networks of ours in the hands of the host's model management."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import comfy.model_management
import comfy.model_patcher
from torch import nn

if TYPE_CHECKING:
    from ...difflora.model import DiffLoRA


@dataclass(frozen=True)
class ManagedModel:
    """A model of ours whose networks the host moves between devices.

    Attributes:
        model: the object that owns the networks.
        patcher: the host's handle on all of them.
    """

    model: DiffLoRA
    patcher: comfy.model_patcher.ModelPatcher

    def on_device(self) -> DiffLoRA:
        """The model, after the host has made room and moved its networks to the computing device."""
        comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)
        return self.model


def manage(model: DiffLoRA) -> ManagedModel:
    """Hands the networks of a model to the host's model management.

    The container keeps the host's bookkeeping attributes off our modules (transformers forbids setting
    ``device``).
    """
    patcher = comfy.model_patcher.ModelPatcher(
        nn.ModuleDict(dict(model.networks)),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    return ManagedModel(model, patcher)

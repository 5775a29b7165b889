"""Node: patch a MODEL with a generated LoRA, or refuse."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..difflora.block_weights import ALL, weigh_tensors
from . import _host
from ._block_inputs import block_inputs
from ._types import CATEGORY


class ApplyLora(io.ComfyNode):
    """Strict counterpart of ComfyUI's own LoRA loaders, which only log what does not fit."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="DiffLoRAApply",
            display_name="Apply DiffLoRA",
            category=CATEGORY,
            description="Patches MODEL with a LoRA. Unlike the core loaders it checks every key and shape "
            "first and stops with a clear message if anything does not fit.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The base model that the DiffLoRA checkpoint was trained for. "
                    "It stays as it is; a patched copy comes out.",
                ),
                io.LoraModel.Input(
                    "lora", tooltip="The LoRA from Generate LoRA, or any LoRA for this base model."
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How strongly the person shows: 0 is the base model, 1 the LoRA as generated, "
                    "1.5 exaggerates the likeness and may ignore parts of the prompt, negative "
                    "values draw somebody unlike the person.",
                ),
                *block_inputs(),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Only needed for a LoRA that also changes the text encoder, as some from other "
                    "tools do. Those from Generate LoRA do not: then CLIP passes through.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The base model with the person in it."),
                io.Clip.Output(
                    display_name="clip",
                    tooltip="The connected CLIP, patched if the LoRA has modules of the text encoder.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: object,
        lora: dict[str, Tensor],
        strength: float,
        block_preset: str = ALL,
        block_weights: str = "",
        clip: object | None = None,
    ) -> io.NodeOutput:
        """Checks, then patches copies."""
        weighed = weigh_tensors(lora, block_preset, block_weights)
        return io.NodeOutput(*_host.apply_lora_to_both(model, clip, weighed, strength))

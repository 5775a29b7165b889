"""Node: LoRA -> hooks, for a LoRA that acts in a part of the picture or of the sampling."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..difflora.block_weights import ALL, weigh_tensors
from . import _host
from ._block_inputs import block_inputs
from ._types import CATEGORY


class LoraToHooks(io.ComfyNode):
    """Several people in one picture: each LoRA follows the conditioning that carries its hooks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="DiffLoRALoraToHooks",
            display_name="LoRA to Hooks",
            category=CATEGORY,
            description="Turns a LoRA into HOOKS for the core nodes Cond Set Props and Cond Pair Set Props: "
            "with a mask there, each person gets their own region of one picture. The LoRA acts wherever "
            "that conditioning counts, and nowhere else.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The base model that KSampler gets. It is not changed: every key and shape of "
                    "the LoRA is checked against it, because the sampler only skips what does not fit.",
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
                    tooltip="How strongly the person shows, as in Apply DiffLoRA.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Part of the sampling from which on the LoRA acts: 0 is the first step. A later "
                    "start leaves the composition to the base model.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Part of the sampling until which the LoRA acts: 1 is the last step.",
                ),
                *block_inputs(),
                io.Hooks.Input(
                    "prev_hooks",
                    optional=True,
                    tooltip="Hooks that the same conditioning has already: both act together.",
                ),
            ],
            outputs=[
                io.Hooks.Output(
                    display_name="hooks",
                    tooltip="For the hooks input of Cond Set Props or Cond Pair Set Props, beside the mask "
                    "of this person's region.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: object,
        lora: dict[str, Tensor],
        strength: float,
        start_percent: float,
        end_percent: float,
        block_preset: str = ALL,
        block_weights: str = "",
        prev_hooks: object | None = None,
    ) -> io.NodeOutput:
        """Checks, then makes a hook."""
        weighed = weigh_tensors(lora, block_preset, block_weights)
        hooks = _host.lora_hooks(model, weighed, strength, start_percent, end_percent, prev_hooks)
        return io.NodeOutput(hooks)

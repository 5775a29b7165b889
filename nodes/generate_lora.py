"""Node: features -> LoRA."""

from __future__ import annotations

from comfy_api.latest import io

from ..difflora.features import IdentityFeatures as Features
from ..difflora.lora import Lora
from . import _host
from ._types import CATEGORY, DiffLoRAModel, IdentityFeatures


class GenerateLora(io.ComfyNode):
    """Samples the weights of a LoRA with the diffusion transformer and decodes them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="DiffLoRAGenerate",
            display_name="Generate LoRA",
            category=CATEGORY,
            description="Samples a LoRA of the person in the photos. The output is the core LORA_MODEL "
            "type: core nodes can apply it and save it too.",
            inputs=[
                DiffLoRAModel.Input("difflora", tooltip="From Load DiffLoRA Model."),
                IdentityFeatures.Input(
                    "features",
                    tooltip="From Encode Reference Photos. Changing only the values below does not encode "
                    "the photos again.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Which of the LoRAs that fit the photos is drawn. The same seed gives the same "
                    "LoRA.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Sampling steps of the LoRA, not of the picture. 0 takes the number that was "
                    "best for this checkpoint.",
                ),
                io.Float.Input(
                    "guidance",
                    default=0.0,
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    tooltip="How much the photos count: 1 is plain sampling, more exaggerates. 0 takes the "
                    "value that was best for this checkpoint.",
                ),
                io.Float.Input(
                    "variation",
                    default=-1.0,
                    min=-1.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much the seed matters: 1 samples, 0 always gives the same average LoRA of "
                    "this person. -1 takes the value that was best for this checkpoint.",
                ),
            ],
            outputs=[
                io.LoraModel.Output(
                    display_name="lora",
                    tooltip="For Apply DiffLoRA, or the core nodes Load LoRA Model and Save LoRA Weights.",
                ),
                io.Float.Output(
                    display_name="strength",
                    tooltip="The strength that was best for this checkpoint: connect it to Apply DiffLoRA, "
                    "or type your own there.",
                ),
                io.String.Output(
                    display_name="report", tooltip="What was generated, and with which settings."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        difflora: _host.ManagedModel,
        features: Features,
        seed: int,
        steps: int,
        guidance: float,
        variation: float,
    ) -> io.NodeOutput:
        """One call of the sampler."""
        lora = difflora.on_device().generate(
            features,
            seed=seed,
            num_steps=steps or None,
            guidance_scale=guidance or None,
            noise_scale=None if variation < 0 else variation,
            progress=_host.progress(),
        )
        strength = float(lora.metadata["difflora.recommended_strength"])
        return io.NodeOutput(lora.state_dict(), strength, describe(lora))


def describe(lora: Lora) -> str:
    """Size of a LoRA and how it was made, a line each."""
    size = (
        f"{len(lora.layout.modules)} modules, rank {lora.layout.rank}, {lora.layout.num_parameters:,} numbers"
    )
    made = {key.removeprefix("difflora."): value for key, value in lora.metadata.items()}
    settings = ("seed", "num_steps", "guidance_scale", "noise_scale", "num_photos", "recommended_strength")
    lines = [f"{name.replace('_', ' ')}: {made[name]}" for name in settings]
    if float(made["noise_scale"]) == 0.0:
        lines.append("the seed has no effect at noise scale 0")
    return "\n".join([size, *lines])

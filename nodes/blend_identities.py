"""Node: two or more people -> somebody between them."""

from __future__ import annotations

from comfy_api.latest import io

from ..difflora.latents import BLEND_MODES, blend_latents
from ..difflora.latents import LoraLatent as Latent
from . import _host
from ._types import CATEGORY, DiffLoRAModel, IdentityFeatures, LoraLatent
from .generate_lora import describe

PEOPLE = (1, 2, 3, 4)


class BlendIdentities(io.ComfyNode):
    """Mixes LoRA latents, where halfway between two people is a person, and decodes the mixture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="DiffLoRABlend",
            display_name="Blend Identities",
            category=CATEGORY,
            description="A LoRA of somebody between two or more people. All the weight on one person gives "
            "exactly that person's LoRA.",
            inputs=[
                DiffLoRAModel.Input("difflora", tooltip="From Load DiffLoRA Model; it decodes the mixture."),
                *(
                    LoraLatent.Input(
                        f"latent_{i}",
                        optional=i > 2,
                        tooltip=f"Person {i}: the latent of Generate LoRA or of Load Identity.",
                    )
                    for i in PEOPLE
                ),
                *(
                    io.Float.Input(
                        f"weight_{i}",
                        default=0.5,
                        min=0.0,
                        max=1.0,
                        step=0.05,
                        tooltip=f"How much of person {i}. Only the ratios of the weights matter; 0 leaves "
                        f"the person out.",
                    )
                    for i in PEOPLE
                ),
                io.Combo.Input(
                    "mode",
                    options=list(BLEND_MODES),
                    default=BLEND_MODES[0],
                    tooltip="spherical keeps the blend as distinctive as the people it lies between; linear "
                    "is the plain mean, which looks more like everybody.",
                ),
            ],
            outputs=[
                io.LoraModel.Output(display_name="lora", tooltip="For Apply DiffLoRA."),
                io.Float.Output(
                    display_name="strength", tooltip="The strength that was best for this checkpoint."
                ),
                io.String.Output(display_name="report", tooltip="Who was mixed how."),
                LoraLatent.Output("latent", display_name="latent", tooltip="The mixture, for Save Identity."),
                IdentityFeatures.Output(
                    "features",
                    display_name="features",
                    tooltip="Everybody's photos, weighted likewise: for Identity Similarity, Save Identity.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        difflora: _host.ManagedModel,
        latent_1: Latent,
        latent_2: Latent,
        weight_1: float,
        weight_2: float,
        weight_3: float,
        weight_4: float,
        mode: str,
        latent_3: Latent | None = None,
        latent_4: Latent | None = None,
    ) -> io.NodeOutput:
        """Mixes, then decodes."""
        people = zip(
            (latent_1, latent_2, latent_3, latent_4), (weight_1, weight_2, weight_3, weight_4), strict=True
        )
        given = [(latent, weight) for latent, weight in people if latent is not None]
        own = difflora.on_device()
        mixed = blend_latents([latent for latent, _ in given], [weight for _, weight in given], mode)
        lora = own.decode(mixed)
        return io.NodeOutput(
            lora.state_dict(), own.recommended.strength, describe(lora), mixed, mixed.features
        )

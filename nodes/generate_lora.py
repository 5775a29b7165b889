"""Node: features -> LoRA, perhaps the best of several."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..difflora.candidates import CANDIDATE_NOISE, NUM_PICTURES, PICTURE_STEPS, PROMPT, rank_candidates
from ..difflora.errors import DiffLoRAError
from ..difflora.features import IdentityFeatures as Features
from ..difflora.lora import Lora
from ..difflora.ranking_sheet import describe_ranking, draw_ranking
from ..difflora.sheet import draw_note
from . import _host
from ._pictures import to_image_batch
from ._types import CATEGORY, DiffLoRAModel, IdentityFeatures, LoraLatent

MAX_SEED = 0xFFFFFFFFFFFFFFFF
NO_RANKING = "One LoRA, nothing to rank. Set candidates to 2 or more and connect model, clip and vae."


def sampling_inputs() -> list[io.Input]:
    """Widgets of the LoRA's sampler."""
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=MAX_SEED,
            control_after_generate=True,
            tooltip="Which of the LoRAs that fit the photos is drawn. The same seed gives the same LoRA.",
        ),
        io.Int.Input(
            "steps",
            default=0,
            min=0,
            max=1000,
            tooltip="Sampling steps of the LoRA, not of the picture. 0 takes the number that was best for "
            "this checkpoint.",
        ),
        io.Float.Input(
            "guidance",
            default=0.0,
            min=0.0,
            max=20.0,
            step=0.1,
            tooltip="How much the photos count: 1 is plain sampling, more exaggerates. 0 takes the value "
            "that was best for this checkpoint.",
        ),
        io.Float.Input(
            "variation",
            default=-1.0,
            min=-1.0,
            max=1.0,
            step=0.05,
            tooltip="How much the seed matters: 1 samples, 0 always gives the same average LoRA of this "
            "person. -1 takes the value that was best for this checkpoint, or .3 with several candidates.",
        ),
    ]


def candidate_inputs() -> list[io.Input]:
    """Widgets and sockets of the ranking."""
    return [
        io.Int.Input(
            "candidates",
            default=1,
            min=1,
            max=64,
            optional=True,
            tooltip="How many LoRAs are sampled, with seed, seed + 1, ... Pictures are drawn with each, and "
            "the LoRA whose pictures look most like the photos is kept. More than 1 needs model, clip, vae.",
        ),
        io.Model.Input(
            "model", optional=True, tooltip="The base model that draws the candidates. It stays as it is."
        ),
        io.Clip.Input("clip", optional=True, tooltip="Its text encoder, for the preview prompt."),
        io.Vae.Input("vae", optional=True, tooltip="Its picture autoencoder."),
        io.String.Input(
            "preview_prompt",
            default=PROMPT,
            optional=True,
            tooltip="What is drawn with each candidate. Ask for a clear view of the face.",
        ),
        io.Int.Input(
            "preview_pictures",
            default=NUM_PICTURES,
            min=1,
            max=16,
            optional=True,
            tooltip="How many pictures are drawn with each candidate. More make the ranking surer.",
        ),
        io.Int.Input(
            "preview_steps",
            default=PICTURE_STEPS,
            min=1,
            max=100,
            optional=True,
            tooltip="Steps of the picture sampler (euler, simple). Stable Diffusion needs about 20.",
        ),
        io.Float.Input(
            "preview_cfg",
            default=1.0,
            min=0.0,
            max=30.0,
            step=0.1,
            optional=True,
            tooltip="Guidance of the picture sampler: 1 for the synthetic world and for turbo models, about "
            "7 for Stable Diffusion.",
        ),
    ]


class GenerateLora(io.ComfyNode):
    """Samples the weights of a LoRA with the diffusion transformer and decodes them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="DiffLoRAGenerate",
            display_name="Generate LoRA",
            category=CATEGORY,
            description="Samples a LoRA of the person in the photos, or several and keeps the one most "
            "alike. The output is the core LORA_MODEL type: core nodes can apply it and save it too.",
            inputs=[
                DiffLoRAModel.Input("difflora", tooltip="From Load DiffLoRA Model."),
                IdentityFeatures.Input(
                    "features",
                    tooltip="From Encode Reference Photos or Load Identity. Changing only the values below "
                    "does not encode the photos again.",
                ),
                *sampling_inputs(),
                *candidate_inputs(),
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
                    display_name="report", tooltip="What was generated, with which settings, and the ranking."
                ),
                LoraLatent.Output(
                    "latent",
                    display_name="latent",
                    tooltip="The LoRA before decoding: for Blend Identities and Save Identity.",
                ),
                io.Image.Output(
                    "ranking",
                    display_name="ranking",
                    tooltip="The candidates' pictures, the one most alike on top, with similarity and seed.",
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
        candidates: int = 1,
        **preview: Any,  # noqa: ANN401  (the sockets and widgets of candidate_inputs)
    ) -> io.NodeOutput:
        """One call of the sampler, after the ranking if there is something to rank."""
        own = difflora.on_device()
        settings = {"num_steps": steps or None, "guidance_scale": guidance or None}
        noise_scale = None if variation < 0 else variation
        sheet, ranks = draw_note(NO_RANKING), ""
        if candidates > 1:
            draw = _host.draw_candidates(own, *preview_models(preview), preview_sampling(seed, preview))
            noise_scale = CANDIDATE_NOISE if noise_scale is None else noise_scale
            ranking = rank_candidates(
                own,
                draw,
                [features],
                candidates,
                seed,
                **settings,
                noise_scale=noise_scale,
                progress=_host.progress(),
            )
            seed = ranking.seeds[ranking.best[0]]
            sheet, ranks = draw_ranking(ranking), f"\n\n{describe_ranking(ranking)}"
            own = difflora.on_device()  # the pictures may have pushed our networks off the device
        latent = own.generate_latent(
            features, seed, **settings, noise_scale=noise_scale, progress=_host.progress()
        )
        lora = own.decode(latent)
        strength = own.recommended.strength
        report = describe(lora) + ranks
        return io.NodeOutput(lora.state_dict(), strength, report, latent, to_image_batch([sheet]))


def preview_models(preview: dict[str, Any]) -> list[object]:
    """MODEL, CLIP and VAE, or one clear error."""
    models = [preview.get(name) for name in ("model", "clip", "vae")]
    if any(model is None for model in models):
        raise DiffLoRAError(
            "several candidates are compared by pictures: connect model, clip and vae of the base model to "
            "Generate LoRA, or set candidates to 1"
        )
    return models


def preview_sampling(seed: int, preview: dict[str, Any]) -> _host.Sampling:
    """How candidates are drawn."""
    return _host.Sampling(
        preview.get("preview_prompt", PROMPT),
        preview.get("preview_pictures", NUM_PICTURES),
        preview.get("preview_steps", PICTURE_STEPS),
        preview.get("preview_cfg", 1.0),
        seed,
    )


def describe(lora: Lora) -> str:
    """Size of a LoRA and how it was made, a line each."""
    size = (
        f"{len(lora.layout.modules)} modules, rank {lora.layout.rank}, {lora.layout.num_parameters:,} numbers"
    )
    made = {key.removeprefix("difflora."): value for key, value in lora.metadata.items()}
    settings = (
        *("seed", "num_steps", "guidance_scale", "noise_scale", "num_photos", "blend", "blend_weights"),
        "recommended_strength",
    )
    lines = [f"{name.replace('_', ' ')}: {made[name]}" for name in settings if name in made]
    if float(made.get("noise_scale", 1.0)) == 0.0:
        lines.append("the seed has no effect at noise scale 0")
    return "\n".join([size, *lines])

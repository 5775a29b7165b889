"""Node: photos and MODEL in, MODEL with the person in it out."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..difflora.model import DiffLoRA
from ..difflora.references import PhotoChoice
from . import _host
from ._types import CATEGORY, DiffLoRAModel
from .encode_photos import join_photos, photo_inputs
from .generate_lora import MAX_SEED, describe
from .load_model import fit_warning


class Personalise(io.ComfyNode):
    """Encode Reference Photos, Generate LoRA and Apply DiffLoRA in one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="DiffLoRAPersonalise",
            display_name="Personalise",
            category=CATEGORY,
            description="All in one: photos of a person and a MODEL in, the MODEL that draws this person "
            "out. Please use only photos of people who agreed to it.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The base model that the DiffLoRA checkpoint was trained for. It stays as it is; "
                    "a patched copy comes out.",
                ),
                *photo_inputs(),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip="Which of the LoRAs that fit the photos is drawn, where the checkpoint samples.",
                ),
                io.Float.Input(
                    "likeness",
                    default=1.0,
                    min=-4.0,
                    max=4.0,
                    step=0.05,
                    tooltip="How strongly the person shows: 1 is what was best for this checkpoint, 0 the "
                    "base model, more exaggerates the likeness and may ignore parts of the prompt.",
                ),
                io.Combo.Input(
                    "without_face",
                    options=["error", "skip"],
                    default="error",
                    tooltip="What happens with a photo in which no face is found: stop with an error, or "
                    "leave the photo out and say so in the report.",
                ),
                DiffLoRAModel.Input(
                    "difflora",
                    optional=True,
                    tooltip="From Load DiffLoRA Model. Without it the one of the synthetic world is used, "
                    "which fits the MODEL of Load Synthetic World only.",
                ),
            ],
            outputs=[
                io.Model.Output("patched", display_name="model", tooltip="MODEL with the person in it."),
                io.LoraModel.Output("lora", display_name="lora", tooltip="The LoRA, e.g. to save it."),
                io.String.Output(
                    "report", display_name="report", tooltip="Every photo, and what was generated."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: object,
        photos: Tensor,
        seed: int,
        likeness: float,
        without_face: str,
        photos_2: Tensor | None = None,
        photos_3: Tensor | None = None,
        photos_4: Tensor | None = None,
        difflora: _host.ManagedModel | None = None,
    ) -> io.NodeOutput:
        """Photos -> features -> LoRA -> patched copy."""
        own = (difflora or _host.manage(DiffLoRA.load())).on_device()
        warning = fit_warning(own, model)
        pictures = join_photos(photos, photos_2, photos_3, photos_4)
        read = own.read_photos(pictures, _host.progress(), PhotoChoice(on_missing=without_face))
        lora = own.generate(read.features, seed, progress=_host.progress())
        tensors = lora.state_dict()
        patched = _host.apply_lora(model, tensors, likeness * own.recommended.strength)
        report = [read.report(), describe(lora), *([f"careful: {warning}"] if warning else [])]
        return io.NodeOutput(patched, tensors, "\n\n".join(report))

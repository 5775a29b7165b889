"""Node: load a DiffLoRA checkpoint with its face models."""

from __future__ import annotations

import logging

from comfy_api.latest import io

from ..difflora.errors import FaceModelError
from ..difflora.faces import FaceAnalyzer
from ..difflora.features import ImageEncoder
from ..difflora.model import DiffLoRA
from ..difflora.vision_tower import image_encoder_folder
from . import _host
from ._types import CATEGORY, DiffLoRAModel, FaceAnalysis

BUILT_IN = "synthetic world (built in)"


class LoadModel(io.ComfyNode):
    """Checkpoint file -> networks that ComfyUI moves to the GPU when they are needed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="DiffLoRALoadModel",
            display_name="Load DiffLoRA Model",
            category=CATEGORY,
            description="Loads a DiffLoRA checkpoint: the networks that turn reference photos into a LoRA.",
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=[BUILT_IN, *_host.checkpoint_names()],
                    default=BUILT_IN,
                    tooltip="Which DiffLoRA to load. The built-in one belongs to the synthetic world and "
                    "needs no files; others are .safetensors files in models/difflora.",
                ),
                FaceAnalysis.Input(
                    "face_analysis",
                    optional=True,
                    tooltip="From Load Face Analysis, for a checkpoint that was trained with a real face "
                    "pack. The built-in checkpoint brings its own.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="From Load CLIP Vision: the image encoder that the checkpoint was trained with. "
                    "Without it a folder of that name in models/clip_vision or models/difflora is used.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The MODEL that the LoRAs are for. Connect it to be told at once if the "
                    "checkpoint belongs to another family of models, or if this fine-tune of the right "
                    "family is so far away that likeness may suffer.",
                ),
            ],
            outputs=[
                DiffLoRAModel.Output(
                    display_name="difflora", tooltip="For Encode Reference Photos and Generate LoRA."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        checkpoint: str,
        face_analysis: FaceAnalyzer | None = None,
        clip_vision: object | None = None,
        model: object | None = None,
    ) -> io.NodeOutput:
        """Loads on the CPU and hands the networks to ComfyUI's model management."""
        path = None if checkpoint == BUILT_IN else _host.checkpoint_path(checkpoint)
        encoder = None if clip_vision is None else _host.ClipVisionEncoder(clip_vision)
        difflora = DiffLoRA.load(path, face_analysis, encoder)
        if difflora.face_analyzer is not None and difflora.image_encoder is None:
            folder = image_encoder_folder(difflora.checkpoint.image_encoder, _host.image_encoder_folders())
            found = None if folder is None else ImageEncoder(folder)
            difflora = DiffLoRA(difflora.checkpoint, difflora.face_analyzer, found)
        if difflora.face_analyzer is None or difflora.image_encoder is None:
            raise FaceModelError(
                f"{checkpoint} was trained with the face pack {difflora.checkpoint.face_pack!r} and the "
                f"image encoder {difflora.checkpoint.image_encoder!r}, which do not ship with this pack: "
                "connect Load Face Analysis with that pack and Load CLIP Vision with that encoder (or put "
                "the encoder's folder into models/clip_vision)"
            )
        if model is not None and (warning := fit_warning(difflora, model)):
            logging.warning(warning)
            _host.show_text(warning, cls.hidden.unique_id)
        return io.NodeOutput(_host.manage(difflora))


def fit_warning(difflora: DiffLoRA, model: object) -> str | None:
    """What to expect of a MODEL that is far from the training base; a MODEL of another family is refused."""
    fit = difflora.base_fit(_host.base_weights(model))
    return None if fit is None else fit.warning

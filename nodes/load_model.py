"""Node: load a DiffLoRA checkpoint with its face models."""

from __future__ import annotations

from comfy_api.latest import io

from ..difflora.errors import FaceModelError
from ..difflora.model import DiffLoRA
from . import _host
from ._types import CATEGORY, DiffLoRAModel

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
            ],
            outputs=[
                DiffLoRAModel.Output(
                    display_name="difflora", tooltip="For Encode Reference Photos and Generate LoRA."
                )
            ],
        )

    @classmethod
    def execute(cls, checkpoint: str) -> io.NodeOutput:
        """Loads on the CPU and hands the networks to ComfyUI's model management."""
        path = None if checkpoint == BUILT_IN else _host.checkpoint_path(checkpoint)
        model = DiffLoRA.load(path)
        if model.face_analyzer is None or model.image_encoder is None:
            raise FaceModelError(
                f"{checkpoint} was trained with the face pack {model.checkpoint.face_pack!r} and the image "
                f"encoder {model.checkpoint.image_encoder!r}, which do not ship with this pack: this node "
                f"loads checkpoints that were trained with the synthetic world's; use the Python library "
                f"(DiffLoRA.load) for others"
            )
        return io.NodeOutput(_host.manage(model))

"""Node: how much pictures look like a person."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..difflora.errors import FaceModelError
from ..difflora.features import IdentityFeatures as Features
from ..difflora.features import check_encoders
from ..difflora.likeness import measure_likeness
from . import _host
from ._types import CATEGORY, DiffLoRAModel, IdentityFeatures


class Similarity(io.ComfyNode):
    """Compares generated pictures with the reference photos by the face pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="DiffLoRASimilarity",
            display_name="Identity Similarity",
            category=CATEGORY,
            description="How much pictures look like a person: 1 is the same face, about 0 a stranger. The "
            "face pack that made the LoRA judges here, so use another one to compare methods.",
            inputs=[
                DiffLoRAModel.Input(
                    "difflora", tooltip="From Load DiffLoRA Model; it brings the face models."
                ),
                IdentityFeatures.Input("features", tooltip="Of the person, from Encode Reference Photos."),
                io.Image.Input(
                    "images",
                    tooltip="One or more pictures. In each the largest face counts; without a face a picture "
                    "counts as 0, and the report says so.",
                ),
            ],
            outputs=[
                io.Float.Output(display_name="similarity", tooltip="Mean over all pictures."),
                io.String.Output(display_name="report", tooltip="The mean, and every picture."),
            ],
        )

    @classmethod
    def execute(cls, difflora: _host.ManagedModel, features: Features, images: Tensor) -> io.NodeOutput:
        """One comparison per picture."""
        model = difflora.model
        if model.face_analyzer is None:
            raise FaceModelError("this DiffLoRA model has no face models: load it with Load DiffLoRA Model")
        check_encoders(features.encoders, model.encoders)
        likeness = measure_likeness(model.face_analyzer, features, images, _host.progress())
        return io.NodeOutput(likeness.mean, likeness.report())

"""Node: reference photos of one person -> features."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..difflora.features import FaceReport
from . import _host
from ._types import CATEGORY, DiffLoRAModel, IdentityFeatures


class EncodePhotos(io.ComfyNode):
    """Finds the face in every photo and reads what makes the person recognisable."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        more = "More photos of the same person. These sockets are for photos of another size than the first "
        "ones."
        return io.Schema(
            node_id="DiffLoRAEncodePhotos",
            display_name="Encode Reference Photos",
            category=CATEGORY,
            description="Finds the face in every photo of one person and reads its features. Please use only "
            "photos of people who agreed to it.",
            inputs=[
                DiffLoRAModel.Input(
                    "difflora", tooltip="From Load DiffLoRA Model; it brings the face models."
                ),
                io.Image.Input(
                    "photos",
                    tooltip="One or more photos of one person: sharp, front-facing, the face at least a "
                    "third of the picture. Of several people in a photo the largest face is taken, and the "
                    "report says so.",
                ),
                io.Image.Input("photos_2", optional=True, tooltip=more),
                io.Image.Input("photos_3", optional=True, tooltip=more),
                io.Image.Input("photos_4", optional=True, tooltip=more),
            ],
            outputs=[
                IdentityFeatures.Output(display_name="features", tooltip="For Generate LoRA."),
                io.String.Output(
                    display_name="report", tooltip="For every photo: which face was taken, and why."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        difflora: _host.ManagedModel,
        photos: Tensor,
        photos_2: Tensor | None = None,
        photos_3: Tensor | None = None,
        photos_4: Tensor | None = None,
    ) -> io.NodeOutput:
        """Batches (N, H, W, C) in, features of all photos together out."""
        batches = [batch for batch in (photos, photos_2, photos_3, photos_4) if batch is not None]
        pictures = [picture for batch in batches for picture in batch]  # each (H, W, C)
        features = difflora.on_device().encode(pictures, progress=_host.progress())
        return io.NodeOutput(features, "\n".join(describe(face, len(pictures)) for face in features.faces))


def describe(report: FaceReport, num_photos: int) -> str:
    """One line about one photo."""
    verdict = "used" if report.used else "not used"
    return f"photo {report.photo + 1} of {num_photos}: {verdict}, {report.reason}"

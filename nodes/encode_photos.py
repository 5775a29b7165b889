"""Node: reference photos of one person -> features, and a verdict on every photo."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..difflora.reference_sheet import draw_references
from ..difflora.references import FACE_ORDERS, OUTLIER_RATIO, PhotoChoice
from . import _host
from ._pictures import to_image_batch
from ._types import CATEGORY, DiffLoRAModel, IdentityFeatures

ALIKE, BY_QUALITY = "all alike", "better photos more"
MORE_PHOTOS = (
    "More photos of the same person. These sockets are for photos of another size than the first ones."
)


def photo_inputs() -> list[io.Input]:
    """The sockets for photos."""
    return [
        io.Image.Input(
            "photos",
            tooltip="One or more photos of one person: sharp, front-facing, the face at least a third of the "
            "picture. Photos of anybody else than most of them show are left out, and the report says so.",
        ),
        *(io.Image.Input(f"photos_{i}", optional=True, tooltip=MORE_PHOTOS) for i in (2, 3, 4)),
    ]


def join_photos(*batches: Tensor | None) -> list[Tensor]:
    """Batches (N, H, W, C) of any sizes -> pictures (H, W, C)."""
    return [picture for batch in batches if batch is not None for picture in batch]


class EncodePhotos(io.ComfyNode):
    """Finds the face in every photo and reads what makes the person recognisable."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
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
                *photo_inputs(),
                io.Combo.Input(
                    "face",
                    options=list(FACE_ORDERS),
                    default=FACE_ORDERS[0],
                    optional=True,
                    tooltip="Which face counts where a photo shows several people: the order in which they "
                    "are counted. 'most like the example' needs a picture in the socket example.",
                ),
                io.Int.Input(
                    "face_index",
                    default=0,
                    min=0,
                    max=100,
                    optional=True,
                    tooltip="Which face in that order is taken: 0 is the first. The picture with the boxes "
                    "shows the numbers.",
                ),
                io.Combo.Input(
                    "without_face",
                    options=["error", "skip"],
                    default="error",
                    optional=True,
                    tooltip="What happens with a photo in which the face is not found: stop with an error, "
                    "or leave the photo out and say so in the report.",
                ),
                io.Float.Input(
                    "outliers",
                    default=OUTLIER_RATIO,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="From three photos on, a photo is left out if its face is less than this part as "
                    "similar to the others as they are to each other: it shows somebody else. 0 keeps all.",
                ),
                io.Combo.Input(
                    "photo_weights",
                    options=[ALIKE, BY_QUALITY],
                    default=ALIKE,
                    optional=True,
                    tooltip="Whether every photo counts the same, or large, sharp, frontal faces count more. "
                    "A photo of weight 2 counts as if it were there twice.",
                ),
                io.Image.Input(
                    "example",
                    optional=True,
                    tooltip="Any photo of the wanted person, for the order 'most like the example'. It only "
                    "chooses; it is not encoded.",
                ),
            ],
            outputs=[
                IdentityFeatures.Output(display_name="features", tooltip="For Generate LoRA."),
                io.String.Output(
                    display_name="report",
                    tooltip="For every photo: which face was taken, how good it is, and why it is used or "
                    "not; then how similar the faces are to each other.",
                ),
                io.Image.Output(
                    "crops", display_name="crops", tooltip="The aligned faces of the used photos, 224 px."
                ),
                io.Image.Output(
                    "boxes",
                    display_name="boxes",
                    tooltip="All photos in one picture: green the face that is used, red one that was left "
                    "out, grey other people, and the reason below.",
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
        face: str = FACE_ORDERS[0],
        face_index: int = 0,
        without_face: str = "error",
        outliers: float = OUTLIER_RATIO,
        photo_weights: str = ALIKE,
        example: Tensor | None = None,
    ) -> io.NodeOutput:
        """Batches (N, H, W, C) in, features of all photos together out."""
        choice = PhotoChoice(face, face_index, example, without_face, outliers, photo_weights == BY_QUALITY)
        pictures = join_photos(photos, photos_2, photos_3, photos_4)
        read = difflora.on_device().read_photos(pictures, _host.progress(), choice)
        crops, boxes = to_image_batch(read.crops), to_image_batch([draw_references(read)])
        return io.NodeOutput(read.features, read.report(), crops, boxes)

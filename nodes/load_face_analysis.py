"""Node: an insightface model pack for real photos."""

from __future__ import annotations

from comfy_api.latest import io

from ..difflora.errors import DiffLoRAError
from ..difflora.face_packs import FacePack, find_face_pack, search_face_packs
from ..difflora.faces import FaceAnalyzer
from ..difflora.providers import CPU, PROVIDERS
from ..difflora.synthetic import world
from . import _host
from ._types import CATEGORY, FaceAnalysis

BUILT_IN_PACK = "synthetic (built in)"
AUTO = "auto"
DETECTION_SIZES = ("128", "256", "320", "512", "640", "1024")


class LoadFaceAnalysis(io.ComfyNode):
    """Model pack -> face detection and recognition."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        found = sorted(pack.name for pack in search_face_packs(_host.face_folders()))
        return io.Schema(
            node_id="DiffLoRALoadFaceAnalysis",
            display_name="Load Face Analysis",
            category=CATEGORY,
            description="Loads an insightface model pack (antelopev2, buffalo_l, ...): it finds and "
            "recognises faces in real photos. The packs of insightface are for non-commercial use only.",
            inputs=[
                io.Combo.Input(
                    "pack",
                    options=[BUILT_IN_PACK, *found],
                    default=BUILT_IN_PACK,
                    tooltip="Which pack. Put others unpacked into models/insightface/models/<name>; folders "
                    "of extra_model_paths.yaml are searched too. The built-in one knows rendered people "
                    "only. "
                    "A DiffLoRA checkpoint works with the pack that it was trained with.",
                ),
                io.Combo.Input(
                    "provider",
                    options=[AUTO, *PROVIDERS],
                    default=AUTO,
                    tooltip="Where the face models run. auto takes the GPU if onnxruntime can use it, else "
                    "the CPU, which needs a fraction of a second for a face. Anything else must work or "
                    "it is an error that says what to install.",
                ),
                io.Combo.Input(
                    "detection_size",
                    options=[AUTO, *DETECTION_SIZES],
                    default=AUTO,
                    tooltip="Pixels to which a photo is scaled to find faces. auto tries several and a "
                    "border around close-ups. Smaller finds large faces, larger finds small ones.",
                ),
            ],
            outputs=[
                FaceAnalysis.Output(display_name="face_analysis", tooltip="For Load DiffLoRA Model."),
            ],
        )

    @classmethod
    def validate_inputs(cls, pack: str) -> bool | str:
        """A pack that is not there: every path that was searched, instead of "value not in list"."""
        try:
            find_pack(pack)
        except DiffLoRAError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, pack: str, provider: str, detection_size: str) -> io.NodeOutput:
        """Loads the two models that are needed."""
        if provider == AUTO:
            provider = CPU if _host.runs_on_cpu() else None
        size = None if detection_size == AUTO else int(detection_size)
        return io.NodeOutput(FaceAnalyzer(find_pack(pack), provider, size))


def find_pack(name: str) -> FacePack:
    """The pack behind a choice of the list."""
    return (
        find_face_pack(world.FACE_PACK)
        if name == BUILT_IN_PACK
        else find_face_pack(name, _host.face_folders())
    )

"""Where the trained files of the synthetic world are; `DiffLoRA.load()` uses the same constants."""

from ..model import EMBEDDED, EMBEDDED_FACE_PACKS, EMBEDDED_IMAGE_ENCODER

BASE_MODEL = EMBEDDED / "synthetic_base"
"""A diffusers ``StableDiffusionPipeline`` folder; its name is the base model's name in files."""
FACE_PACK = EMBEDDED_FACE_PACKS / "synthetic"
"""A model pack for insightface's ``FaceAnalysis(name="synthetic", root=FACE_PACK.parents[1])``."""
IMAGE_ENCODER = EMBEDDED_IMAGE_ENCODER
"""A ``CLIPVisionModelWithProjection`` folder."""
EVALUATION_RECOGNISER = EMBEDDED / "evaluation" / "recogniser.safetensors"
ATTRIBUTE_CLASSIFIER = EMBEDDED / "evaluation" / "attributes.safetensors"

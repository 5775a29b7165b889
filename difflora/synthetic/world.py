"""Where the trained files of the synthetic world are; `DiffLoRA.load()` uses the same constants."""

from ..model import EMBEDDED, EMBEDDED_FACE_PACKS, EMBEDDED_IMAGE_ENCODER

BASE_MODEL = EMBEDDED / "synthetic_base"
"""A diffusers ``StableDiffusionPipeline`` folder; its name is the base model's name in files."""
FACE_PACK = EMBEDDED_FACE_PACKS / "synthetic"
"""A model pack for insightface's ``FaceAnalysis(name="synthetic", root=FACE_PACK.parents[1])``."""
IMAGE_ENCODER = EMBEDDED_IMAGE_ENCODER
"""A ``CLIPVisionModelWithProjection`` folder."""
PORTRAIT_RECOGNISER = EMBEDDED / "portrait_recogniser.onnx"
"""Sees whole pictures; only `training.identity_loss` asks it."""
EVALUATION_RECOGNISER = EMBEDDED / "evaluation" / "recogniser.safetensors"
ATTRIBUTE_CLASSIFIER = EMBEDDED / "evaluation" / "attributes.safetensors"
PICTURE_GUIDANCE = 1.5
"""Classifier-free guidance for pictures of the base model: the least, in steps of a quarter, at which it
follows validation prompts 95 % as well as the renderer. More costs likeness."""

"""Where the trained files of the synthetic world are."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
BASE_MODEL = WEIGHTS / "synthetic_base"
"""A diffusers ``StableDiffusionPipeline`` folder; its name is the base model's name in files."""
FACE_PACK = WEIGHTS / "face_pack" / "models" / "synthetic"
"""A model pack for insightface's ``FaceAnalysis(name="synthetic", root=FACE_PACK.parents[1])``."""
IMAGE_ENCODER = WEIGHTS / "image_encoder"
"""A transformers ``CLIPVisionModelWithProjection`` folder."""
CHECKPOINT = WEIGHTS / "difflora.safetensors"
"""The DiffLoRA checkpoint that was trained on all of the above."""
EVALUATION_RECOGNISER = WEIGHTS / "evaluation" / "recogniser.safetensors"
ATTRIBUTE_CLASSIFIER = WEIGHTS / "evaluation" / "attributes.safetensors"

"""The socket types of the pack, and its place in the menu."""

from comfy_api.latest import io

CATEGORY = "DiffLoRA"

DiffLoRAModel = io.Custom("DIFFLORA_MODEL")
"""A ``ManagedModel`` around ``difflora.DiffLoRA``."""
FaceAnalysis = io.Custom("DIFFLORA_FACE_ANALYSIS")
"""``difflora.faces.FaceAnalyzer``: a loaded insightface model pack."""
IdentityFeatures = io.Custom("DIFFLORA_FEATURES")
"""``difflora.IdentityFeatures``: what was read from the photos of one person."""
LoraLatent = io.Custom("DIFFLORA_LATENT")
"""``difflora.latents.LoraLatent``: the sampled latent of one LoRA, with the features of whom it is."""

"""DiffLoRA: photos of a person in, a LoRA that draws this person out.

```python
from difflora import DiffLoRA

model = DiffLoRA.load()                            # the embedded synthetic world
features = model.encode(["photo.png"])             # IdentityFeatures
lora = model.generate(features, seed=0)            # Lora
lora.save("person.safetensors")
```

The names below are loaded at first use, so that `import difflora` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import CheckpointError, DiffLoRAError, FaceModelError, LayoutError, NoFaceError, PhotoError
    from .features import IdentityFeatures
    from .identity import Identity, load_identity, save_identity
    from .latents import blend_latents
    from .layout import LoraLayout
    from .lora import Lora
    from .lora_edit import merge_loras, resize_lora, scale_blocks
    from .lora_metadata import describe_lora
    from .model import DiffLoRA
    from .patch import apply_lora
    from .references import PhotoChoice

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "DiffLoRA",
    "DiffLoRAError",
    "FaceModelError",
    "Identity",
    "IdentityFeatures",
    "LayoutError",
    "Lora",
    "LoraLayout",
    "NoFaceError",
    "PhotoChoice",
    "PhotoError",
    "apply_lora",
    "blend_latents",
    "describe_lora",
    "load_identity",
    "merge_loras",
    "resize_lora",
    "save_identity",
    "scale_blocks",
]


def _module_of(name: str) -> str:
    """File, inside the package, that defines a public name."""
    if name.endswith("Error"):
        return ".errors"
    return {
        "DiffLoRA": ".model",
        "Identity": ".identity",
        "IdentityFeatures": ".features",
        "Lora": ".lora",
        "LoraLayout": ".layout",
        "PhotoChoice": ".references",
        "apply_lora": ".patch",
        "blend_latents": ".latents",
        "describe_lora": ".lora_metadata",
        "load_identity": ".identity",
        "merge_loras": ".lora_edit",
        "resize_lora": ".lora_edit",
        "save_identity": ".identity",
        "scale_blocks": ".lora_edit",
    }[name]


def __getattr__(name: str) -> Any:  # noqa: ANN401  (whatever the name stands for)
    """Load a public name from its module at first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_module_of(name), __name__), name)


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return sorted([*__all__, "__version__"])

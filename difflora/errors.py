"""Errors that a user can act on: what was wrong, what was expected, what to do."""


class DiffLoRAError(ValueError):
    """Base class of every error that this package raises on purpose."""


class PhotoError(DiffLoRAError):
    """A reference photo cannot be used: too small, not finite, not an image."""


class NoFaceError(PhotoError):
    """No face was found in a reference photo."""


class CheckpointError(DiffLoRAError):
    """A file with weights is missing, truncated, of another kind, or made for something else."""


class LayoutError(DiffLoRAError):
    """A LoRA and a model, or a LoRA and a layout, do not fit: modules, shapes or values."""


class FaceModelError(DiffLoRAError):
    """A face model pack or an image encoder is missing or incomplete."""


class DiffLoRAWarning(UserWarning):
    """Something works, but worse than it could; the text says what to do."""

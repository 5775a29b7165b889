"""Node: a person -> a file without photos."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from ..difflora.features import IdentityFeatures as Features
from ..difflora.identity import Identity, identity_file_name, save_identity
from ..difflora.latents import LoraLatent as Latent
from . import _host
from ._types import CATEGORY, IdentityFeatures, LoraLatent

EXISTING = {"keep both": "number", "stop with an error": "error", "overwrite": "overwrite"}


class SaveIdentity(io.ComfyNode):
    """Features, and the chosen LoRA latent, in ``models/difflora/identities``."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="DiffLoRASaveIdentity",
            display_name="Save Identity",
            category=CATEGORY,
            description="Saves what was read from the photos, without the photos, for Load Identity. "
            "Features of a face are personal data: save only people who agreed to it.",
            inputs=[
                IdentityFeatures.Input("features", tooltip="From Encode Reference Photos."),
                io.String.Input(
                    "name",
                    default="person",
                    tooltip="Name of the file in models/difflora/identities. Letters, digits, spaces; no "
                    "folders.",
                ),
                io.String.Input(
                    "consent",
                    default="",
                    multiline=True,
                    tooltip="Who agreed to what, and when. Kept in the file and shown when it is loaded.",
                ),
                io.Combo.Input(
                    "if_it_exists",
                    options=list(EXISTING),
                    default="keep both",
                    tooltip="What happens if another identity has this name: keep both (a number is added), "
                    "stop, or overwrite it. The very same identity is never written twice.",
                ),
                LoraLatent.Input(
                    "latent",
                    optional=True,
                    tooltip="From Generate LoRA: the LoRA that was chosen, so that this very one comes back.",
                ),
            ],
            outputs=[io.String.Output(display_name="report", tooltip="Where the file is and what is in it.")],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, features: Features, name: str, consent: str, if_it_exists: str, latent: Latent | None = None
    ) -> io.NodeOutput:
        """Checks the name, then writes a whole file or none."""
        path = Path(_host.identity_folder()) / identity_file_name(name)
        written = save_identity(path, Identity(features, latent, consent.strip()), EXISTING[if_it_exists])
        what = "features and LoRA latent" if latent is not None else "features"
        return io.NodeOutput(
            f"{written}: {what} of {len(features)} photo{'s' if len(features) > 1 else ''}, no photo in it"
        )

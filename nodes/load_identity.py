"""Node: a file without photos -> the person again."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from ..difflora.errors import CheckpointError
from ..difflora.identity import load_identity
from . import _host
from ._types import CATEGORY, DiffLoRAModel, IdentityFeatures, LoraLatent

NOBODY = "(no identity saved yet)"


class LoadIdentity(io.ComfyNode):
    """Reads what Save Identity wrote, for the same encoders only."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        names = _host.identity_names() or [NOBODY]
        return io.Schema(
            node_id="DiffLoRALoadIdentity",
            display_name="Load Identity",
            category=CATEGORY,
            description="Loads a person that Save Identity saved: no photo is needed again.",
            inputs=[
                DiffLoRAModel.Input(
                    "difflora",
                    tooltip="From Load DiffLoRA Model. Identities that other encoders read are refused.",
                ),
                io.Combo.Input(
                    "identity",
                    options=names,
                    default=names[0],
                    tooltip="A file in models/difflora/identities. Press R after saving a new one.",
                ),
            ],
            outputs=[
                IdentityFeatures.Output(display_name="features", tooltip="For Generate LoRA."),
                LoraLatent.Output(
                    display_name="latent",
                    tooltip="The LoRA latent in the file, or without one the average LoRA of this person. "
                    "For Blend Identities.",
                ),
                io.LoraModel.Output(display_name="lora", tooltip="That latent decoded, for Apply DiffLoRA."),
                io.Float.Output(
                    display_name="strength", tooltip="The strength that was best for this checkpoint."
                ),
                io.String.Output(
                    display_name="report", tooltip="What is in the file, and the note about consent."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, identity: str, **_: object) -> str:
        """Reads a file again that has changed."""
        try:
            status = Path(_host.identity_path(identity)).stat()
        except (CheckpointError, OSError):
            return identity  # execute says what is wrong
        return f"{identity} {status.st_mtime_ns} {status.st_size}"

    @classmethod
    def execute(cls, difflora: _host.ManagedModel, identity: str) -> io.NodeOutput:
        """Reads, checks, decodes."""
        if identity == NOBODY:
            raise CheckpointError(
                "no identity was saved yet: use Save Identity, then press R and choose it here"
            )
        own = difflora.on_device()
        person = load_identity(_host.identity_path(identity), own)
        latent, origin = person.latent, "with its LoRA latent"
        if latent is None or latent.autoencoder != own.autoencoder_fingerprint:
            origin = "without a LoRA latent" if latent is None else "its LoRA latent is another checkpoint's"
            origin += ": the average LoRA was generated"
            latent = own.generate_latent(person.features, noise_scale=0.0, progress=_host.progress())
        note = person.note or "no note about consent in this file"
        report = f"{identity}: {len(person.features)} photos, {origin}\nconsent: {note}"
        return io.NodeOutput(
            person.features, latent, own.decode(latent).state_dict(), own.recommended.strength, report
        )

"""Node: what works in this ComfyUI, what does not, and how to repair it."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from ..difflora.doctor import examine
from ..difflora.findings import Finding, to_text
from . import _host
from ._types import CATEGORY


class Doctor(io.ComfyNode):
    """Examines the installation when it is queued."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="DiffLoRADoctor",
            display_name="DiffLoRA Doctor",
            category=CATEGORY,
            description="Examines this installation: versions, GPU, face models, your DiffLoRA checkpoints "
            "and what each needs, every folder that is searched, free memory, and for each problem the "
            "command that repairs it. Queue it alone.",
            inputs=[],
            outputs=[
                io.String.Output(
                    display_name="report",
                    tooltip="The findings as text, for Preview Any or a bug report; also shown in the node.",
                )
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls) -> float:
        """Never from the cache: not-a-number differs from itself."""
        return float("nan")

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """The host's facts first, then the library's findings."""
        facts = [Finding("ok", topic, what) for topic, what in _host.host_facts().items()]
        paths = [Path(_host.checkpoint_path(name)) for name in _host.checkpoint_names()]
        report = to_text([*facts, *examine(_host.face_folders(), paths, _host.image_encoder_folders())])
        _host.show_text(report, cls.hidden.unique_id)
        return io.NodeOutput(report)

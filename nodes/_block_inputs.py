"""The two inputs of every node that weighs the blocks of a LoRA."""

from __future__ import annotations

from comfy_api.latest import io

from ..difflora.block_weights import ALL, PRESETS


def block_inputs() -> list[io.Input]:
    """A preset, and a line to type in; optional, so that workflows from before they existed stay valid."""
    return [
        io.Combo.Input(
            "block_preset",
            options=list(PRESETS),
            default=ALL,
            optional=True,
            tooltip="Which blocks of the U-Net the LoRA acts in. Inner blocks work on coarse pictures "
            "(shapes), outer ones on fine pictures. The presets for SDXL follow what InstantStyle "
            "and B-LoRA found.",
        ),
        io.String.Input(
            "block_weights",
            default="",
            optional=True,
            tooltip="Your own weights instead of the preset: 'OUT01=0, IN=0.5' (IN, OUT and ALL stand for "
            "several blocks), or a number for every block with commas between, as in block-weight nodes "
            "(BASE may come first). Empty: the preset counts.",
        ),
    ]

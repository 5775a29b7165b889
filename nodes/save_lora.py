"""Node: a LoRA as a file that every LoRA loader lists, with all that model browsers look for."""

from __future__ import annotations

from dataclasses import replace

import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ..difflora.adapter_config import WEIGHTS_NAME
from ..difflora.block_weights import ALL, weigh_blocks
from ..difflora.errors import LayoutError
from ..difflora.lora import lora_from_state_dict
from ..difflora.lora_edit import resize_lora
from ..difflora.lora_keys import STYLES
from ..difflora.lora_metadata import DESCRIPTION_KEY, TITLE_KEY
from ..difflora.photos import load_photo
from . import _host
from ._block_inputs import block_inputs
from ._types import CATEGORY

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class SaveLora(io.ComfyNode):
    """Counterpart of the core node that writes the bare tensors."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        folders = _host.lora_folder_names()
        return io.Schema(
            node_id="DiffLoRASaveLora",
            display_name="Save LoRA",
            category=CATEGORY,
            description="Writes a LoRA file where every LoRA loader finds it at once, with a header, a "
            "preview and a description for model browsers. A file that exists is never overwritten.",
            is_output_node=True,
            inputs=[
                io.LoraModel.Input("lora", tooltip="The LoRA from Generate LoRA, or any LoRA for a U-Net."),
                io.String.Input(
                    "name",
                    default="difflora/person",
                    tooltip="Name of the file; a counter is put behind it. people/anna makes the subfolder "
                    "people; %year%, %month%, %day% and so on are filled in.",
                ),
                io.Combo.Input(
                    "folder",
                    options=folders,
                    default=folders[0],
                    tooltip="Which LoRA folder of this ComfyUI, those from extra_model_paths.yaml included.",
                ),
                io.Combo.Input(
                    "key_style",
                    options=list(STYLES),
                    default="kohya",
                    tooltip="Which tool's key names: kohya for ComfyUI, A1111 and most others; kohya_sgm and "
                    "diffusion_model have the original block numbers; diffusers and peft (a folder) are for "
                    "Python, and ComfyUI does not load those two.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="fp16",
                    tooltip="Precision of the numbers in the file: fp16 is usual; fp32 doubles the size.",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Rank of the LoRA in the file: 0 as it is. A smaller one makes a smaller file "
                    "that does nearly the same (the nearest LoRA of that rank).",
                ),
                *block_inputs(),
                io.String.Input(
                    "title",
                    default="",
                    optional=True,
                    tooltip="What model browsers call it. Empty: the file's name. It is no trigger word.",
                ),
                io.String.Input(
                    "description",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Your notes for model browsers, for instance who agreed to what. May be empty.",
                ),
                io.Boolean.Input(
                    "sidecar",
                    default=True,
                    optional=True,
                    tooltip="Also write <name>.metadata.json for LoRA Manager: base model, strength, hash.",
                ),
                io.Image.Input(
                    "thumbnail",
                    optional=True,
                    tooltip="A picture drawn with this LoRA: written beside the file as <name>.png, where "
                    "model browsers look for it, and small into its header. Of a batch the first one.",
                ),
            ],
            outputs=[
                io.AnyType.Output(
                    display_name="lora_name",
                    tooltip="The file as LoRA loaders list it: connect it to their lora_name.",
                ),
                io.String.Output(display_name="path", tooltip="The whole path of the file."),
            ],
        )

    @classmethod
    def execute(
        cls,
        lora: dict[str, Tensor],
        name: str,
        folder: str,
        key_style: str,
        dtype: str,
        rank: int,
        block_preset: str = ALL,
        block_weights: str = "",
        title: str = "",
        description: str = "",
        sidecar: bool = True,
        thumbnail: Tensor | None = None,
    ) -> io.NodeOutput:
        """Bakes in what was asked for, then writes; thumbnail (B, H, W, C)."""
        if dtype not in DTYPES:  # the host checks no lists of V3 nodes that come through its API
            raise LayoutError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
        made = weigh_blocks(lora_from_state_dict(lora), block_preset, block_weights)
        made = resize_lora(made, rank) if rank else made
        preview = None if thumbnail is None else Image.fromarray(load_photo(thumbnail[0]))
        path = _host.new_lora_file(folder, name, WEIGHTS_NAME if key_style == "peft" else "")
        called = (path.parent if key_style == "peft" else path).stem.rstrip("_")
        told = {TITLE_KEY: title.strip() or called, DESCRIPTION_KEY: description.strip()}
        told = {key: text for key, text in told.items() if text}
        made = replace(made, metadata={**made.metadata, **told})
        made.save(path, DTYPES[dtype], key_style, preview, sidecar)
        listed = _host.lora_name(path, folder)
        return io.NodeOutput(listed, str(path), ui=ui.PreviewText(listed))

"""Node: a folder of photos per person -> a LoRA file per person."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..difflora.batch import BatchSettings, find_people, personalize_folders
from ..difflora.errors import DiffLoRAError
from ..difflora.lora import Lora
from . import _host
from ._types import CATEGORY, DiffLoRAModel


class BatchPeople(io.ComfyNode):
    """Resumable: who has a LoRA of the same photos, checkpoint and settings is skipped."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        folders = _host.lora_folder_names()
        return io.Schema(
            node_id="DiffLoRABatchPeople",
            display_name="Batch of People",
            category=CATEGORY,
            description="Makes a LoRA file of every person in a folder of folders. Start it again after "
            "Cancel or with new photos: what is done is not done twice, and a bad folder stops nobody else. "
            "Please use only photos of people who agreed to it.",
            is_output_node=True,
            inputs=[
                DiffLoRAModel.Input("difflora", tooltip="From Load DiffLoRA Model."),
                io.String.Input(
                    "folder",
                    default="people",
                    tooltip="Folder inside of ComfyUI's input folder. It has a folder for each person, whose "
                    "name becomes the name of the LoRA: input/people/anna/*.jpg.",
                ),
                io.Combo.Input(
                    "lora_folder",
                    options=folders,
                    default=folders[0],
                    tooltip="Which LoRA folder of this ComfyUI, those from extra_model_paths.yaml included.",
                ),
                io.String.Input(
                    "subfolder",
                    default="people",
                    tooltip="Folder inside of the LoRA folder for the files, made if needed; may be empty.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,  # a new seed after every run would make all LoRAs again
                    tooltip="As in Generate LoRA. Another seed makes all LoRAs again.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="As in Generate LoRA: 0 takes the number that was best for this checkpoint.",
                ),
                io.Float.Input(
                    "guidance",
                    default=0.0,
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    tooltip="As in Generate LoRA: 0 takes the value that was best for this checkpoint.",
                ),
                io.Float.Input(
                    "variation",
                    default=-1.0,
                    min=-1.0,
                    max=1.0,
                    step=0.05,
                    tooltip="As in Generate LoRA: -1 takes the value that was best for this checkpoint.",
                ),
                io.Boolean.Input(
                    "sidecar",
                    default=True,
                    tooltip="Also write <name>.metadata.json for LoRA Manager: base model, strength, hash.",
                ),
            ],
            outputs=[
                io.LoraModel.Output(
                    display_name="loras",
                    is_output_list=True,
                    tooltip="All LoRAs, one after the other: what follows runs once for each person.",
                ),
                io.String.Output(
                    display_name="people",
                    is_output_list=True,
                    tooltip="The people's names in the same order, for instance for file names.",
                ),
                io.String.Output(
                    display_name="report", tooltip="For every person: made, up to date or failed, and why."
                ),
                io.Float.Output(
                    display_name="strength",
                    tooltip="The strength that was best for this checkpoint: connect it to Apply DiffLoRA, "
                    "where it counts for every LoRA of the list.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: object) -> float:
        """Never equal: the photos on the disk may have changed, and whoever is up to date costs nothing."""
        return float("nan")

    @classmethod
    def execute(
        cls,
        difflora: _host.ManagedModel,
        folder: str,
        lora_folder: str,
        subfolder: str,
        seed: int,
        steps: int,
        guidance: float,
        variation: float,
        sidecar: bool,
    ) -> io.NodeOutput:
        """One call of the batch; then the files are read back."""
        people = find_people(_host.input_folder(folder))
        out = _host.lora_folder(lora_folder, subfolder)
        settings = BatchSettings(
            seed, steps or None, guidance or None, None if variation < 0 else variation, sidecar=sidecar
        )
        own = difflora.on_device()
        results = personalize_folders(own, people, out, settings, _host.progress())
        report = "\n".join(map(str, results))
        done = [(result.person, result.path) for result in results if result.path is not None]
        if not done:
            raise DiffLoRAError(f"no LoRA could be made:\n{report}")
        loras = [Lora.load(path).state_dict() for _, path in done]
        names = [name for name, _ in done]
        return io.NodeOutput(loras, names, report, own.recommended.strength, ui=ui.PreviewText(report))

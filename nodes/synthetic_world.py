"""Nodes: the embedded world as the host's models, and photos of the people who live in it."""

from __future__ import annotations

from comfy_api.latest import io

from ..difflora.synthetic import world
from ..difflora.synthetic.people import sample_people
from ..difflora.synthetic.photo_folders import save_photo_folders
from ..difflora.synthetic.renderer import PHOTO_PX, render
from ..difflora.synthetic.scenes import sample_scenes
from . import _host
from ._types import CATEGORY


class LoadSyntheticWorld(io.ComfyNode):
    """The tiny base model that ships with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="DiffLoRALoadSyntheticWorld",
            display_name="Load Synthetic World",
            category=CATEGORY,
            description="The tiny text-to-image model that ships with the pack: no download, 128 x 128 "
            "pictures of rendered people in a second on a CPU. Prompt it like 'a photo of a person, "
            "smiling, facing left, red background, green shirt'.",
            inputs=[],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="For Apply DiffLoRA and KSampler. Take an Empty Latent Image of 64 x 64: its "
                    "pictures are twice as large.",
                ),
                io.Clip.Output(display_name="clip", tooltip="For CLIP Text Encode."),
                io.Vae.Output(display_name="vae", tooltip="For VAE Decode."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """The three parts of the pipeline folder."""
        folder = world.BASE_MODEL
        return io.NodeOutput(_host.load_unet(folder), _host.load_text_encoder(folder), _host.load_vae(folder))


class SyntheticPhotos(io.ComfyNode):
    """Reference photos for trying things out: rendered people whom no model has seen in training."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="DiffLoRASyntheticPhotos",
            display_name="Synthetic Reference Photos",
            category=CATEGORY,
            description="Photos of a rendered person, for trying DiffLoRA without a photo of anybody. The "
            "person is from the test set: no model of the pack was trained on them.",
            inputs=[
                io.Int.Input(
                    "person",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="Which person. Every number is somebody else.",
                ),
                io.Int.Input(
                    "count",
                    default=1,
                    min=1,
                    max=16,
                    tooltip="How many photos of that person, each with another expression, pose, light, "
                    "background and clothes.",
                ),
                io.Int.Input(
                    "scene_seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    tooltip="Which expressions, poses, lights and clothes the photos show.",
                ),
            ],
            outputs=[io.Image.Output(display_name="photos", tooltip="For Encode Reference Photos.")],
        )

    @classmethod
    def execute(cls, person: int, count: int, scene_seed: int) -> io.NodeOutput:
        """Renders the photos."""
        traits = sample_people("test", person, 1).expand(count, -1)  # (N, I)
        pictures = render(traits, sample_scenes(count, scene_seed), PHOTO_PX).pictures  # (N, 3, H, W)
        return io.NodeOutput(pictures.movedim(1, -1).contiguous())  # (N, H, W, 3)


class SyntheticPeopleFolder(io.ComfyNode):
    """Folders of photos as a user would have them, for trying out Batch of People."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="DiffLoRASyntheticPeopleFolder",
            display_name="Synthetic People Folder",
            category=CATEGORY,
            description="Writes photos of rendered people into ComfyUI's input folder, a folder for each "
            "person, for trying Batch of People without a photo of anybody. Files that exist stay.",
            inputs=[
                io.String.Input(
                    "folder",
                    default="difflora_people",
                    tooltip="Folder inside of ComfyUI's input folder; made if needed.",
                ),
                io.Int.Input("people", default=3, min=1, max=100, tooltip="How many people."),
                io.Int.Input("count", default=2, min=1, max=16, tooltip="How many photos of each."),
                io.Int.Input(
                    "scene_seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    tooltip="Which expressions, poses, lights and clothes the photos show.",
                ),
            ],
            outputs=[io.String.Output(display_name="folder", tooltip="For Batch of People.")],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: object) -> float:
        """Never equal: somebody may have deleted the files, and writing nothing costs nothing."""
        return float("nan")

    @classmethod
    def execute(cls, folder: str, people: int, count: int, scene_seed: int) -> io.NodeOutput:
        """Renders what is missing."""
        save_photo_folders(_host.input_folder(folder), people, count, scene_seed)
        return io.NodeOutput(folder)

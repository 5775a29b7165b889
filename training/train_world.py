"""Builds the synthetic world: ``python -m training.train_world``.

Stages, each resumable at any moment: the base model (picture encoder, tokenizer, U-Net, text encoder), its
picture decoder, the image encoder, and the face models (detector, recogniser, the recogniser of whole
pictures that only training asks, and the two judges that only evaluation uses).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

if not __package__:  # run as a file: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from difflora.errors import DiffLoRAError
from difflora.model import EMBEDDED
from difflora.synthetic.world import BASE_MODEL
from training.common import say
from training.world_base import train_base_model
from training.world_clip import train_image_encoder
from training.world_decoder import train_picture_decoder
from training.world_faces import STAGES as FACE_STAGES
from training.world_pipeline import PRESETS, install

STAGES = ("base_model", "picture_decoder", "image_encoder", *FACE_STAGES)


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--stage", choices=STAGES, nargs="*", default=list(STAGES), help="what to build; default: all"
    )
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), default="cpu", help="sizes and amount of training"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/world"), help="run folder; an existing one is continued"
    )
    parser.add_argument("--weights", type=Path, default=EMBEDDED, help="where the finished models go")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument(
        "--init", type=Path, help="trained base model (pipeline folder) that the base model starts from"
    )
    parser.add_argument(
        "--pictures", type=int, help="training pictures of the base model (overrides the preset)"
    )
    return parser.parse_args()


def main() -> None:
    """Build the chosen stages in order."""
    arguments = parse()
    config = PRESETS[arguments.preset]
    if arguments.pictures:
        config = dataclasses.replace(config, pictures=arguments.pictures)
    if "base_model" in arguments.stage:
        measures = train_base_model(
            arguments.out / "base_model", config, arguments.device, init=arguments.init
        )
        install(arguments.out / "base_model" / "base_model", arguments.weights / BASE_MODEL.name)
        say(f"picture autoencoder: {json.dumps(measures)}")
    if "picture_decoder" in arguments.stage:
        base_model = arguments.weights / BASE_MODEL.name
        train_picture_decoder(arguments.out / "picture_decoder", base_model, config, arguments.device)
    if "image_encoder" in arguments.stage:
        base_model = arguments.out / "base_model" / "base_model"
        train_image_encoder(arguments.out / "image_encoder", base_model, config, arguments.device)
        install(arguments.out / "image_encoder" / "image_encoder", arguments.weights / "image_encoder")
    for name, train in FACE_STAGES.items():
        if name in arguments.stage:
            train(arguments.out / name, arguments.device, arguments.weights)


if __name__ == "__main__":
    try:
        main()
    except DiffLoRAError as error:
        sys.exit(f"error: {error}")

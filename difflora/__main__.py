"""Command line: `python -m difflora demo`, `personalize`, `personalize-folder` and `doctor`."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import textwrap
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import DiffLoRAError

if TYPE_CHECKING:
    from .base_model import BaseModel
    from .features import IdentityFeatures
    from .latents import LoraLatent
    from .model import DiffLoRA

USER_ERROR = 2
LONGEST_ERROR = 600
"""Characters; what other libraries say about a damaged file can fill pages."""


def build_parser() -> argparse.ArgumentParser:
    """All commands and options."""
    parser = argparse.ArgumentParser(
        prog="python -m difflora", description="Photos of a person in, a LoRA that draws this person out."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--seed", type=int, default=0, help="the same seed gives the same LoRA (default 0)")
    shared.add_argument(
        "--device", default="auto", help="cpu, cuda, mps, ... (default: a GPU if torch sees one, else cpu)"
    )

    demo = commands.add_parser(
        "demo", parents=[shared], help="the whole chain on rendered people, offline, in under a minute"
    )
    demo.add_argument("--out", type=Path, default=Path("demo_output"), help="folder (default demo_output)")
    demo.add_argument(
        "--person", type=int, default=0, help="the first of eight unseen people, 0, 1, 2, ... (default 0)"
    )
    demo.add_argument("--strength", type=float, help="of the LoRA (default: what its checkpoint recommends)")

    person = commands.add_parser("personalize", parents=[shared], help="photos of one person -> a LoRA file")
    person.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="photos of the same person")
    person.add_argument("--out", type=Path, required=True, help="LoRA file to write, .safetensors")
    person.add_argument("--checkpoint", type=Path, help="of DiffLoRA (default: the synthetic world's)")
    person.add_argument("--face-pack", help="insightface model pack: its folder, or a name in ~/.insightface")
    person.add_argument("--image-encoder", type=Path, help="folder of a CLIP vision model")
    person.add_argument("--steps", type=int, help="sampling steps (default: what the checkpoint recommends)")
    person.add_argument(
        "--candidates", type=int, default=1, metavar="N", help="sample N LoRAs, keep the one most alike"
    )
    person.add_argument(
        "--refine", type=int, default=0, metavar="STEPS", help="refine on the photos themselves; 10 is plenty"
    )
    person.add_argument(
        "--caption",
        action="append",
        metavar="TEXT",
        help="for --refine: what a photo shows besides the person, as in prompts; for all, or one each",
    )
    person.add_argument(
        "--base", type=Path, help="pipeline folder for --candidates and --refine (synthetic world's)"
    )
    person.add_argument("--guidance", type=float, help="1 is plain sampling, more exaggerates the likeness")

    folder = commands.add_parser(
        "personalize-folder", parents=[shared], help="a folder of photos per person -> a LoRA file per person"
    )
    folder.add_argument("folder", type=Path, help="folder that has a folder of photos for each person")
    folder.add_argument("--out", type=Path, required=True, help="folder for <person>.safetensors")
    folder.add_argument("--checkpoint", type=Path, help="of DiffLoRA (default: the synthetic world's)")
    folder.add_argument("--face-pack", type=Path, help="folder of an insightface model pack")
    folder.add_argument("--image-encoder", type=Path, help="folder of a CLIP vision model")
    folder.add_argument("--steps", type=int, help="sampling steps (default: what the checkpoint recommends)")
    folder.add_argument("--guidance", type=float, help="1 is plain sampling, more exaggerates the likeness")

    doctor = commands.add_parser("doctor", help="what works here, what does not, and how to repair it")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON, for programs")
    doctor.add_argument(
        "--face-folder",
        action="append",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="another folder in which insightface model packs may be; may be given several times",
    )
    doctor.add_argument(
        "--models",
        action="append",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="ComfyUI's models folder, to examine your checkpoints in models/difflora; found by itself where "
        "this is a node pack in custom_nodes; may be given several times",
    )
    return parser


def demo(args: argparse.Namespace) -> None:
    """Run the demo and say what came out."""
    silence("transformers", "diffusers")  # in this order: diffusers imports transformers
    from .demo import run_demo

    device = choose_device(args.device)
    report = run_demo(args.out, args.person, args.seed, args.strength, device, announce=print)
    print()
    measures = {"identity similarity": report.identity_similarity, "prompt accuracy": report.prompt_accuracy}
    for measure, rows in measures.items():
        print(f"{measure:<19} {rows['base_model']:5.2f} base model {rows['personalised']:5.2f} with LoRA")
    print(f"\nLook at {args.out / 'grid.png'}; the numbers are in report.json, the LoRA in lora.safetensors.")


def personalize(args: argparse.Namespace) -> None:
    """Make a LoRA file from photos."""
    if args.out.suffix != ".safetensors":
        raise DiffLoRAError(f"--out {args.out} should end with .safetensors")
    if args.refine < 0:
        raise DiffLoRAError(f"--refine {args.refine}: steps are 0 (not at all) or more")
    if args.candidates < 1:
        raise DiffLoRAError(f"--candidates {args.candidates}: at least one LoRA has to be sampled")
    for photo in args.photos:
        if not photo.is_file():
            raise DiffLoRAError(f"no photo at {photo}: check the path")
    from .model import DiffLoRA

    model = DiffLoRA.load(
        args.checkpoint,
        face_pack=args.face_pack,
        image_encoder=args.image_encoder,
        device=choose_device(args.device),
    )
    features = model.encode(args.photos)
    for face in features.faces:
        print(f"{args.photos[face.photo]}: {face.reason}")
    seed, noise_scale = args.seed, None
    if args.candidates > 1:
        seed, noise_scale = best_seed(args, model, features)
    latent = model.generate_latent(features, seed, args.steps, args.guidance, noise_scale)
    if args.refine:
        latent = refined(args, model, latent)
    model.decode(latent).save(args.out)
    base_model, strength = model.checkpoint.base_model, model.recommended.strength
    print(f"wrote {args.out}: for {base_model}, best at strength {strength:g}")


def personalize_folder(args: argparse.Namespace) -> None:
    """Make a LoRA file of every person who does not have one of the same photos yet."""
    from .batch import BatchSettings, find_people, personalize_folders
    from .model import DiffLoRA

    people = find_people(args.folder)  # before anything slow
    model = DiffLoRA.load(
        args.checkpoint,
        face_pack=args.face_pack,
        image_encoder=args.image_encoder,
        device=choose_device(args.device),
    )
    settings = BatchSettings(args.seed, args.steps, args.guidance)
    results = personalize_folders(model, people, args.out, settings, announce=print)
    if failed := [result.person for result in results if result.outcome == "failed"]:
        raise DiffLoRAError(
            f"{len(failed)} of {len(results)} people failed ({', '.join(failed)}): mend their folders and "
            "start again, the others are not made twice"
        )


def refined(args: argparse.Namespace, model: DiffLoRA, latent: LoraLatent) -> LoraLatent:
    """The latent after `--refine` steps on the photos that were used."""
    from .refinement import CAPTION, RefinementConfig, refine

    captions = args.caption or [CAPTION]
    if len(captions) not in (1, len(args.photos)):
        raise DiffLoRAError(
            f"{len(captions)} captions for {len(args.photos)} photos: give one for all, or one for each"
        )
    used = [face.photo for face in latent.features.faces if face.used]
    return refine(
        model,
        open_base(args),
        latent,
        [args.photos[index] for index in used],
        [captions[index % len(captions)] for index in used],
        RefinementConfig(num_steps=args.refine),
        args.seed,
    )


def open_base(args: argparse.Namespace) -> BaseModel:
    """The base model of `--base`, else the synthetic world's."""
    silence("transformers", "diffusers")
    from .base_model import BaseModel
    from .synthetic.world import BASE_MODEL

    return BaseModel.load(args.base or BASE_MODEL, device=choose_device(args.device))


def best_seed(args: argparse.Namespace, model: DiffLoRA, features: IdentityFeatures) -> tuple[int, float]:
    """Seed and noise scale of the candidate that looks most like the photos; shows the ranking."""
    from .candidates import batched_draw, rank_candidates

    draw = batched_draw(model, open_base(args), args.seed)
    ranking = rank_candidates(model, draw, [features], args.candidates, args.seed, args.steps, args.guidance)
    for place in ranking.similarity[0].argsort(descending=True).tolist():
        print(f"seed {ranking.seeds[place]}: likeness {ranking.similarity[0, place]:.3f}")
    return ranking.seeds[ranking.best[0]], ranking.noise_scale


def doctor(args: argparse.Namespace) -> int:
    """Examine the installation; 1 if something needed is broken."""
    from .doctor import DEFAULT_FOLDERS, examine
    from .findings import is_broken, to_json, to_text
    from .own_checkpoints import find_checkpoints, installed_models

    for folder in args.models:
        if not folder.is_dir():
            raise DiffLoRAError(f"--models {folder}: no such folder")
    models = args.models or [folder for folder in [installed_models()] if folder is not None]
    faces = [*args.face_folder, *(folder / "insightface" for folder in models), *DEFAULT_FOLDERS]
    checkpoints = [path for folder in models for path in find_checkpoints(folder / "difflora")]
    encoders = [folder / kind for folder in models for kind in ("clip_vision", "difflora")]
    findings = examine(faces, checkpoints, encoders)
    print(to_json(findings) if args.json else to_text(findings))
    return int(is_broken(findings))


def silence(*packages: str) -> None:
    """Keep Hugging Face libraries from drawing bars and giving advice while they load half a megabyte."""
    for package in packages:
        if importlib.util.find_spec(package) is not None:
            logging = import_module(f"{package}.utils.logging")
            logging.set_verbosity_error()
            logging.disable_progress_bar()


def choose_device(name: str) -> str:
    """A device that torch has.

    Raises:
        DiffLoRAError: torch does not know it or cannot use it here.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled with CUDA
        reason = str(error).splitlines()[0]
        raise DiffLoRAError(f"device {name!r} cannot be used here ({reason}): try --device cpu") from error
    return name


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: as typed after `python -m difflora`; those of the process by default.

    Returns:
        0; 1 if the doctor found a problem; 2 after an error that the user can mend, told in one line.
    """
    args = build_parser().parse_args(arguments)
    try:
        if args.command == "doctor":
            return doctor(args)
        commands = {"demo": demo, "personalize": personalize, "personalize-folder": personalize_folder}
        commands[args.command](args)
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is missing: pip install -e '.[demo]' in the repository", file=sys.stderr)
        return USER_ERROR
    except (DiffLoRAError, OSError) as error:
        print(textwrap.shorten(f"error: {error}", LONGEST_ERROR, placeholder=" ..."), file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

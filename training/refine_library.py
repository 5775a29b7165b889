"""Refine predicted LoRAs on pictures of their people: `python -m training.refine_library`.

A prediction holds what all people taught; a few gradient steps on a person's own pictures, in the latent
space of the LAE, add what the prediction missed; no step leaves the directions in which people differ. The
DiT that learns from such LoRAs averages the luck of the pictures away. [ours]
Resumable: shards that are there are kept.
Letters: B people of a shard, F photos of each, M people with photos, n LoRAs, P parameters of one LoRA.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

if not __package__:  # run as a file: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from difflora.base_model import BaseModel
from difflora.errors import CheckpointError, DiffLoRAError
from difflora.files import save_safetensors
from difflora.hypernetwork import LoraHypernetwork
from difflora.refinement import RefinementConfig, refine_latents
from difflora.synthetic import world
from training.common import open_run, polite_interruption, progress_bar, read_config, say
from training.lora_library import SHARED_DOWN_NAME, Library, deal_shards, library_option, load_library
from training.make_loras import parse_worker
from training.photo_pool import PhotoPool, ScatteredPeople, build_pool
from training.presets import preset
from training.train_lae import TrainedLae

SHARD_PEOPLE = 16
CONFIG = RefinementConfig(num_steps=6, learning_rate=0.2, noises=4)


def predicted_rows(library: Library) -> Tensor:
    """Row of everybody's last LoRA (M,), people in order: trained ones stand in front of predicted ones."""
    place = {int(person): row for row, person in enumerate(library.people.tolist())}
    return torch.tensor([place[person] for person in sorted(place)])


def refine_people(
    networks: LoraHypernetwork, library: Library, rows: Tensor, pool: PhotoPool, base: BaseModel
) -> Tensor:
    """LoRAs of B people refined on all of their pictures: rows of the library (B,) -> (B, P), on the CPU."""
    people = library.people[rows].to(pool.valid.device)  # (B,)
    count = pool.image_latents.shape[1]  # F
    photos = torch.arange(count).expand(len(rows), -1)  # (B, F)
    image_latents, prompts = (
        part.unflatten(0, (len(rows), count)) for part in pool.pictures(people, photos)
    )  # (B, F, Cl, h, w), (B, F, L, W)
    latents = networks.encode_loras(library.flat[rows])  # (B, T, C)
    downs = {name: down.to(latents.device) for name, down in library.shared_down.items()}
    refined = refine_latents(networks, downs, base, latents, image_latents, prompts, CONFIG, seed=0)
    with torch.no_grad():
        return networks.decode_latents(refined).cpu()


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    """Command line; the defaults are the embedded world's own files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    library_option(parser, "runs/loras_amortised")
    parser.add_argument(
        "--lae", type=Path, default=Path("runs/lae/lae.safetensors"), help="by train_lae, of this library"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/loras_refined"), help="the new library")
    parser.add_argument("--cache", type=Path, default=Path("runs/photos"), help="features, as for train_dit")
    parser.add_argument("--base", type=Path, default=world.BASE_MODEL, help="diffusers pipeline folder")
    parser.add_argument("--face-pack", type=Path, default=world.FACE_PACK, help="insightface model pack")
    parser.add_argument("--image-encoder", type=Path, default=world.IMAGE_ENCODER, help="CLIP vision tower")
    parser.add_argument("--people", type=int, default=4000, help="how many, at most those of the library")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument(
        "--worker", type=parse_worker, default=(0, 1), help="do only every n-th shard, e.g. 0/2"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Read the library, refine it shard by shard."""
    options = read_options(arguments)
    library, trained_lae = load_library(options.loras, mapped=True), TrainedLae.load(options.lae)
    if trained_lae.layout.fingerprint != library.layout.fingerprint:
        raise CheckpointError(f"{options.lae} is not of {options.loras}: run train_lae on it")
    base = BaseModel.load(options.base, options.device)
    dit = preset("synthetic").dit
    rows = predicted_rows(library)[: options.people]  # (n,)
    encoders = preset("synthetic").encoders(options.face_pack, options.image_encoder, options.device)
    people = ScatteredPeople("train", dit.photos_per_person, dit.seed)
    pool = build_pool(options.cache / "train", people, len(rows), base, *encoders)
    pool = pool.to(options.device)

    networks = LoraHypernetwork(
        library.layout, replace(preset("synthetic").networks, lae=trained_lae.lae.config)
    )
    networks.lae.load_state_dict(trained_lae.lae.state_dict())
    networks.set_normalisation(trained_lae.normalisation)
    networks.to(options.device).requires_grad_(False).train(False).fit_latents(library.flat)
    how = {"people": len(rows), "steps": CONFIG.num_steps, "rate": CONFIG.learning_rate}
    folder = open_run(options.out, read_config(options.loras) | {"refined": how})
    save_safetensors(folder / SHARED_DOWN_NAME, dict(library.shared_down))
    index, workers = options.worker
    shards = deal_shards(folder, "train", len(rows), SHARD_PEOPLE)[index::workers]
    bar = progress_bar(len(shards), "refined shards", 0)
    with polite_interruption() as interrupted:
        for shard in shards:
            if not shard.is_done():
                own = rows[list(shard.people)]
                flat = refine_people(networks, library, own, pool, base)
                save_safetensors(shard.path, {"flat_weights": flat, "people": library.people[own]})
            bar.update(1)
            if interrupted():
                raise SystemExit(130)
    bar.close()
    say(f"{len(rows)} refined LoRAs in {folder}")


if __name__ == "__main__":
    try:
        main()
    except DiffLoRAError as error:
        sys.exit(f"error: {error}")

"""Train MIF and DiT: `python -m training.train_dit --lae runs/lae/lae.safetensors --out runs/dit`.

Writes the DiffLoRA checkpoint. Resumable: started again with the same settings, it goes on where it stopped.
`--image-loss-weight 0` is the weight-space recipe of the paper.
Letters: B rows, N reference photos, K pictures, T latent tokens, C latent channels, P parameters of one LoRA.
"""

import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path

if not __package__:  # run as a file: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from difflora.base_model import BaseModel
from difflora.base_sketch import sketch_base
from difflora.checkpoint import Checkpoint, Recommended, save_checkpoint
from difflora.diffusion import DiffusionConfig
from difflora.errors import CheckpointError, DiffLoRAError
from difflora.hypernetwork import LoraHypernetwork
from difflora.linear_prior import LinearPrior
from training.common import (
    MetricsWriter,
    load_state,
    open_run,
    plot_metrics,
    polite_interruption,
    progress_bar,
    read_config,
    save_state,
    say,
)
from training.dit_losses import Data, image_loss, latent_loss, measure
from training.lora_library import library_option, load_library
from training.optimising import Average, rate_at
from training.photo_pool import ScatteredPeople, build_pool, pool_photos
from training.pictures import PhotoFolders, SomePeople
from training.presets import (
    PRESETS,
    DitTrainingConfig,
    Drawing,
    apply_options,
    config_options,
    diffusion_options,
    fit_features,
    preset,
)
from training.recommending import recommend
from training.settings import PRIOR_REGULARISER
from training.train_lae import TrainedLae, first_rows, split_library

SAVE_EVERY = 250


def fit_prior(prior: LinearPrior, latents: Tensor, data: Data) -> None:
    """Ridge regression from single photos to latents (n, T, C) of the training rows."""
    parts = []
    for rows in (data.training, data.held_out):
        photos, person = pool_photos(data.pool, data.people[rows])  # (m, F), (m,)
        parts.append((photos, latents[rows][person]))  # (m, F), (m, T, C)
    prior.fit(*parts[0], parts[1], data.pool.face.shape[-1], PRIOR_REGULARISER)


def train(
    networks: LoraHypernetwork,
    data: Data,
    config: DitTrainingConfig,
    folder: Path,
    people_at_once: int = Drawing.people_at_once,
) -> LoraHypernetwork:
    """Train MIF and DiT (and the decoder), resuming what the folder holds; returns the averaged networks.

    Args:
        networks: with a trained LAE and its normalisation; trained in place.
        data: what to train on.
        config: how.
        folder: gets `state.safetensors` and `metrics.jsonl`.
        people_at_once: validation people in one pass of the base model.
    """
    networks.requires_grad_(False)
    latents = networks.fit_latents(
        data.flat
    )  # (n, T, C); the statistics are those of all LoRAs, no labels involved
    library_row, candidates = data.pool_to_library(), data.image_people()  # (M,), (M',)
    state_path = folder / "state.safetensors"
    trained = [*networks.mif.parameters(), *networks.dit.parameters()]
    if networks.prior is not None:
        # In weight space ridge regression is the best linear map: gradient steps only add noise to it.
        trained += networks.prior.parameters() if config.image_loss_weight else []
        if networks.prior.is_untrained and not state_path.is_file():
            fit_prior(networks.prior, latents, data)
    decoder = (
        networks.lae.decoder_parameters() if config.image_loss_weight and config.decoder_learning_rate else []
    )
    rates = [config.learning_rate, config.decoder_learning_rate]
    for parameter in trained + decoder:
        parameter.requires_grad_(True)
    average = Average(networks, config.ema_decay)
    groups = [{"params": part} for part in (trained, decoder) if part]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=config.weight_decay)
    start = 0
    if state_path.is_file():
        state = load_state(state_path)
        networks.load_state_dict(state["networks"])
        average.module.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        start = state["step"]
    bar = progress_bar(config.num_steps, "DiT", start)
    with MetricsWriter(folder / "metrics.jsonl", start) as metrics, polite_interruption() as interrupted:
        for step in range(start, config.num_steps):
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            losses = {"latent_loss": latent_loss(networks, latents, data, config, generator)}
            loss = config.latent_loss_weight * losses["latent_loss"]
            if config.image_loss_weight and step >= config.image_loss_from:
                losses["image_loss"] = image_loss(
                    networks, average.module, latents, library_row, candidates, data, config, generator
                )
                loss = loss + config.image_loss_weight * losses["image_loss"]
            for group, peak in zip(optimiser.param_groups, rates, strict=False):
                group["lr"] = rate_at(step, config.num_steps, peak, config.warmup)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            torch.nn.utils.clip_grad_norm_(decoder, 1.0)
            optimiser.step()
            average.update(step)
            bar.update(1)

            values = {name: float(value.detach()) for name, value in losses.items()}
            done = step + 1 == config.num_steps
            if (step + 1) % config.validate_every == 0 or done:
                values |= measure(average.module, data, config, people_at_once)
                bar.set_postfix_str(f"gain {values['image_gain_zero']:.4f}, R2 {values['held_out_r2']:.3f}")
            metrics.write(step + 1, **values)
            if (step + 1) % SAVE_EVERY == 0 or done or interrupted():
                weights = {"networks": networks.state_dict(), "average": average.module.state_dict()}
                save_state(state_path, {**weights, "optimiser": optimiser.state_dict(), "step": step + 1})
            if interrupted():
                raise SystemExit(130)
    bar.close()
    return average.module.train(False)


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    """Command line; the defaults are the embedded world's own files."""
    parser = argparse.ArgumentParser(
        description="Train the mixing block (MIF) and the diffusion transformer (DiT)."
    )
    library_option(parser, "runs/loras_amortised")
    parser.add_argument(
        "--lae", type=Path, default=Path("runs/lae/lae.safetensors"), help="what train_lae wrote"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/dit"), help="run folder, resumed if it exists")
    parser.add_argument("--init", type=Path, help="run folder of a finished run whose networks to start from")
    parser.add_argument(
        "--checkpoint", type=Path, help="DiffLoRA checkpoint to write (default: in the run folder)"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/photos"), help="features and pictures, computed once"
    )
    parser.add_argument("--photos", type=Path, help="one folder of photos per person, as given to make_loras")
    parser.add_argument(
        "--caption",
        default=PhotoFolders.default_caption,
        help="prompt of photos without a caption: the words that the library's LoRAs were trained on",
    )
    parser.add_argument(
        "--base", type=Path, help="diffusers pipeline folder (default: the synthetic world's)"
    )
    parser.add_argument("--face-pack", type=Path, help="insightface model pack (likewise)")
    parser.add_argument("--image-encoder", type=Path, help="CLIP vision tower (likewise)")
    parser.add_argument("--preset", default="synthetic", help=", ".join(PRESETS))
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument(
        "--float16", action="store_true", help="write the checkpoint's networks in half precision"
    )
    diffusion_options(parser)
    config_options(parser, DitTrainingConfig)
    return parser.parse_args(arguments)


def check_photos(loras: Path, folders: PhotoFolders) -> None:
    """A library names people by the number of their folder: other folders would be other people.

    Raises:
        CheckpointError: the folders are not those that the library was made with.
    """
    known = read_config(loras).get("people", {}).get("photos")
    if known not in (None, folders.description()["photos"]):
        raise CheckpointError(
            f"{folders.root} does not hold the photos that {loras} was made with: a folder or photo was "
            "added, renamed or removed; give the same folder, or make the library again"
        )


def main(arguments: list[str] | None = None) -> None:
    """Read the options, prepare the data, train, choose the settings, save, plot."""
    options = read_options(arguments)
    chosen = preset(options.preset)
    config = apply_options(chosen.dit, options)
    library, device = load_library(options.loras, mapped=True), options.device
    trained_lae = TrainedLae.load(options.lae)
    layout = trained_lae.layout
    if layout.fingerprint != library.layout.fingerprint:
        raise CheckpointError(
            f"{options.lae} was trained on another layout than {options.loras}: run train_lae on it"
        )
    base = BaseModel.load(chosen.file("base", options.base), device)
    made_for = read_config(options.loras)["base_model_fingerprint"]
    if base.fingerprint != made_for:
        raise CheckpointError(
            f"{options.loras} was made for the base model {made_for}, {base.name} is "
            f"{base.fingerprint}: give the same one with --base"
        )
    face_analyzer, image_encoder = chosen.encoders(options.face_pack, options.image_encoder, device)

    needed = int(library.people.max()) + 1
    count = max(needed, config.pool_people) if config.image_loss_weight else needed
    encoders = (base, face_analyzer, image_encoder)
    training, held_out = split_library(len(library.flat), trained_lae.held_out)
    if options.photos is None and chosen.base is None:
        people = [
            ScatteredPeople(split, config.photos_per_person, config.seed) for split in ("train", "validation")
        ]
        pool = build_pool(options.cache / "train", people[0], count, *encoders)
        validation = build_pool(options.cache / "validation", people[1], config.validation_people, *encoders)
    else:
        folders = PhotoFolders(
            chosen.file("photos", options.photos), config.photos_per_person, options.caption
        )
        check_photos(options.loras, folders)
        chosen_people = library.people[first_rows(held_out, config.validation_people)].tolist()
        some = SomePeople(folders, tuple(chosen_people))
        pool = build_pool(
            options.cache / "folders",
            folders,
            min(count, len(folders)),
            *encoders,
            config.image_loss_weight > 0,
        )
        validation = build_pool(options.cache / "validation", some, len(chosen_people), *encoders)
    data = Data(
        library.flat,
        library.people.to(device),
        training,
        held_out,
        pool.to(device),
        validation.to(device),
        base,
        {name: down.to(device) for name, down in library.shared_down.items()},
    )

    diffusion = DiffusionConfig(options.schedule, options.prediction)
    sizes = replace(
        fit_features(chosen.networks, 512, image_encoder.width),
        lae=trained_lae.lae.config,
        diffusion=diffusion,
    )
    init = {"init": options.init.name} if options.init else {}
    sources = {"networks": asdict(sizes), "training": asdict(config), "base": base.fingerprint}
    open_run(options.out, sources | init)
    torch.manual_seed(config.seed)
    networks = LoraHypernetwork(layout, sizes)
    networks.lae.load_state_dict(trained_lae.lae.state_dict())
    networks.set_normalisation(trained_lae.normalisation)
    if options.init is not None:
        networks.load_state_dict(load_state(options.init / "state.safetensors")["average"])
    networks = train(networks.to(device), data, config, options.out, chosen.drawing.people_at_once)

    checkpoint = Checkpoint(
        networks,
        data.shared_down,
        base.name if chosen.base is None else chosen.base.name,  # by which other tools know it
        face_analyzer.name,
        image_encoder.folder.name,
        Recommended(),
        sketch_base(layout, base.denoiser.state_dict()),
    )
    path = options.checkpoint or options.out / "difflora.safetensors"
    dtype = torch.float16 if options.float16 else torch.float32
    save_checkpoint(path, checkpoint, dtype)  # before the choice: nothing is lost if it fails
    best = recommend(checkpoint, base, data.validation, face_analyzer, chosen.drawing)
    save_checkpoint(path, replace(checkpoint, recommended=best), dtype)
    plot_metrics(options.out / "metrics.jsonl", options.out / "loss.png", ("latent_loss", "image_loss"))
    plot_metrics(
        options.out / "metrics.jsonl", options.out / "validation.png", ("image_gain", "image_gain_zero")
    )
    say(f"recommended: {best}\ncheckpoint saved to {path}")


if __name__ == "__main__":
    try:
        main()
    except DiffLoRAError as error:
        sys.exit(f"error: {error}")

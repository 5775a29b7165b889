"""Train the end-to-end regressor, a control: `python -m training.train_regressor --library runs/loras`.

Features of photos -> coefficients of bases -> `lora_up` of all modules, trained with the base model's loss
on pictures of rendered people. No latent, no diffusion. The library gives the shared `lora_down` and, unless
`--start scratch`, the place to start from.
Resumable: started again with the same settings, it goes on where it stopped.
Letters: B rows, N reference photos, K pictures, C feature width, Q bases, P parameters of one LoRA.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

if not __package__:  # run as a file: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from difflora.base_model import BaseModel
from difflora.controls import PrincipalComponents, RidgeRegression
from difflora.errors import CheckpointError, DiffLoRAError
from difflora.layout import SharedDown
from difflora.picture_loss import picture_losses
from difflora.synthetic import world
from training.basis_regressor import BasisRegressor, BasisRegressorConfig, save_regressor
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
from training.dit_losses import image_gain, noisy_features
from training.lora_library import Library, library_option, load_library
from training.optimising import Average, rate_at
from training.photo_pool import PhotoPool, ScatteredPeople, build_pool, choose_photos, pool_photos
from training.presets import Drawing, apply_options, config_options, preset
from training.settings import RIDGE_REGULARISER, RegressorTrainingConfig

SAVE_EVERY = 100
STARTS = ("scratch", "ridge")


@dataclass(frozen=True, eq=False)
class RegressorData:
    """What is trained on: photos of people, the frozen base model, module -> lora_down."""

    pool: PhotoPool
    validation: PhotoPool
    base: BaseModel
    shared_down: SharedDown


def start_from_ridge(regressor: BasisRegressor, library: Library, pool: PhotoPool) -> None:
    """Give the regressor the closed-form solution in weight space."""
    flat = library.flat[torch.arange(len(library.flat))]  # (n, P)
    components = PrincipalComponents.fit(flat, min(regressor.config.bases, len(flat) - 1))
    targets = components.project(flat)  # (n, Q)
    photos, person = pool_photos(pool, library.people)  # (m, C), (m,)
    ridge = RidgeRegression.fit(regressor.standardise(photos), targets[person], RIDGE_REGULARISER)
    regressor.start_from(ridge, components, targets.std(dim=0))


def regressor_loss(
    regressor: BasisRegressor,
    data: RegressorData,
    people: Tensor,
    config: RegressorTrainingConfig,
    generator: torch.Generator,
) -> Tensor:
    """The base model's loss on pictures of random people, with their regressed LoRAs -> 0-d."""
    rows = people[torch.randint(len(people), (config.image_people,), generator=generator)]  # (B,)
    references, mask, pictures = choose_photos(
        data.pool.valid[rows], config.max_photos, config.pictures_per_person, generator
    )  # (B, N), (B, N), (B, K)
    features = noisy_features(data.pool.references(rows, references, mask), config.feature_noise, generator)
    image_latents, prompts = data.pool.pictures(rows, pictures)  # (B*K, Cl, h, w), (B*K, L, W)
    flat = regressor(*features)  # (B, P)
    return picture_losses(
        data.base,
        regressor.layout,
        flat,
        data.shared_down,
        image_latents,
        prompts,
        generator,
        config.precision,
    ).mean()


@torch.no_grad()
def validate(
    regressor: BasisRegressor, data: RegressorData, config: RegressorTrainingConfig, people_at_once: int
) -> float:
    """Image gain from one photo of validation people: the DiT's `image_gain_zero`, photo for photo."""
    everybody = torch.arange(len(data.validation))  # (B,)
    fixed = torch.Generator().manual_seed(1)
    references, mask, _ = choose_photos(data.validation.valid, 1, 0, fixed)  # (B, 1)
    flat = regressor(*data.validation.references(everybody, references, mask))  # (B, P)
    return image_gain(
        data.base, regressor.layout, data.shared_down, data.validation, flat, config, people_at_once
    )


def train(
    regressor: BasisRegressor,
    data: RegressorData,
    config: RegressorTrainingConfig,
    folder: Path,
    people_at_once: int = Drawing.people_at_once,
) -> BasisRegressor:
    """Train, resuming what the folder holds; returns the averaged regressor.

    Args:
        regressor: trained in place.
        data: what to train on.
        config: how.
        folder: gets `state.safetensors` and `metrics.jsonl`.
        people_at_once: validation people in one pass of the base model.
    """
    people = data.pool.valid.any(dim=1).nonzero().squeeze(1)  # (M',) everybody with a face
    average = Average(regressor, config.ema_decay)
    bases = [regressor.mean, regressor.basis]
    maps = [*regressor.linear.parameters(), *regressor.mlp.parameters()]
    groups = [{"params": bases, "weight_decay": 0.0}, {"params": maps, "weight_decay": config.weight_decay}]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    start, spent, state_path = 0, 0.0, folder / "state.safetensors"
    if state_path.is_file():
        state = load_state(state_path)
        regressor.load_state_dict(state["regressor"])
        average.module.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        start, spent = state["step"], state["seconds"]
    bar = progress_bar(config.num_steps, "regressor", start)
    with MetricsWriter(folder / "metrics.jsonl", start) as metrics, polite_interruption() as interrupted:
        if start == 0:
            metrics.write(0, image_gain=validate(regressor, data, config, people_at_once))
        for step in range(start, config.num_steps):
            began = time.process_time()
            # with a limit of time the schedule is at whichever is nearer its end: steps or seconds
            place = max(step, int(config.num_steps * spent / config.seconds)) if config.seconds else step
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            loss = regressor_loss(regressor, data, people, config, generator)
            for group in optimiser.param_groups:
                group["lr"] = rate_at(place, config.num_steps, config.learning_rate, config.warmup)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*bases, *maps], 1.0)
            optimiser.step()
            average.update(step)
            spent += time.process_time() - began
            bar.update(1)

            values = {"image_loss": float(loss.detach()), "seconds": spent}
            done = step + 1 == config.num_steps or 0 < config.seconds <= spent
            if (step + 1) % config.validate_every == 0 or done:
                values["image_gain"] = validate(average.module, data, config, people_at_once)
                bar.set_postfix_str(f"gain {values['image_gain']:.4f}")
            metrics.write(step + 1, **values)
            if (step + 1) % SAVE_EVERY == 0 or done or interrupted():
                weights = {"regressor": regressor.state_dict(), "average": average.module.state_dict()}
                state = {**weights, "optimiser": optimiser.state_dict(), "step": step + 1, "seconds": spent}
                save_state(state_path, state)
            if interrupted():
                raise SystemExit(130)
            if done:
                break
    bar.close()
    return average.module.train(False)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line; the defaults are the embedded world's own files."""
    parser = argparse.ArgumentParser(
        prog="python -m training.train_regressor",
        description="Train the end-to-end regressor that the evaluation compares DiffLoRA with.",
    )
    library_option(parser, "runs/loras")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/regressor"), help="run folder, resumed if it exists"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/photos"), help="features and pictures, as for train_dit"
    )
    parser.add_argument("--base", type=Path, default=world.BASE_MODEL, help="diffusers pipeline folder")
    parser.add_argument("--face-pack", type=Path, default=world.FACE_PACK, help="insightface model pack")
    parser.add_argument("--image-encoder", type=Path, default=world.IMAGE_ENCODER, help="CLIP vision tower")
    config_options(parser, RegressorTrainingConfig)
    options = parser.parse_args(arguments)
    if options.start not in (None, *STARTS):
        parser.error(f"--start {options.start!r}: use one of {', '.join(STARTS)}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, prepare the data, train, save, plot."""
    options = read_options(arguments)
    config = apply_options(RegressorTrainingConfig(), options)
    library, base = load_library(options.loras), BaseModel.load(options.base)
    made_for = read_config(options.loras)["base_model_fingerprint"]
    if base.fingerprint != made_for:
        raise CheckpointError(
            f"{options.loras} was made for the base model {made_for}, {base.name} is {base.fingerprint}: "
            "give the same one with --base"
        )
    encoders = (base, *preset("synthetic").encoders(options.face_pack, options.image_encoder))
    train_people, validation_people = (
        ScatteredPeople(split, config.photos_per_person, config.seed) for split in ("train", "validation")
    )
    data = RegressorData(
        build_pool(options.cache / "train", train_people, config.pool_people, *encoders),
        build_pool(options.cache / "validation", validation_people, config.validation_people, *encoders),
        base,
        library.shared_down,
    )
    open_run(
        options.out, {"training": asdict(config), "base": base.fingerprint, "library": len(library.people)}
    )
    torch.manual_seed(config.seed)
    sizes = BasisRegressorConfig(512, encoders[2].width, config.hidden, config.bases)
    regressor = BasisRegressor(library.layout, sizes)
    regressor.fit_features(pool_photos(data.pool)[0])
    if config.start == "ridge":
        start_from_ridge(regressor, library, data.pool)
    regressor = train(regressor, data, config, options.out)
    path = save_regressor(
        options.out / "regressor.safetensors", regressor, library.shared_down, base.fingerprint
    )
    plot_metrics(options.out / "metrics.jsonl", options.out / "loss.png", ("image_loss",))
    plot_metrics(options.out / "metrics.jsonl", options.out / "validation.png", ("image_gain",))
    say(f"regressor saved to {path}")


if __name__ == "__main__":
    try:
        main()
    except DiffLoRAError as error:
        sys.exit(f"error: {error}")

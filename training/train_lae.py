"""Train the LAE on a library of LoRAs: `python -m training.train_lae --library runs/loras --out runs/lae`.

Resumable: started again with the same settings, it goes on where it stopped.
Letters: n LoRAs of the library, B of a batch, P parameters of one LoRA.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

if not __package__:  # run as a file: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from difflora.autoencoder import LaeConfig, LoraAutoencoder, explained_variance, lae_loss
from difflora.checkpoint import config_from_fields
from difflora.errors import CheckpointError, DiffLoRAError
from difflora.layout import LoraLayout
from difflora.normalisation import ROWS_AT_ONCE, LoraNormalisation, WeightRows
from training.common import (
    MetricsWriter,
    load_state,
    open_run,
    plot_metrics,
    polite_interruption,
    progress_bar,
    save_state,
    say,
)
from training.lora_library import library_option, load_library
from training.optimising import Average, rate_at
from training.presets import PRESETS, LaeTrainingConfig, apply_options, config_options, preset

REPORT_EVERY = 50
SAVE_EVERY = 500
MEASURED_ROWS = 512
COMPONENT_ROWS = 2048
"""LoRAs that give the principal components, which the linear path starts from: the first of the library, as
trained LoRAs stand in front of predicted ones, differ in more directions, and are few of a random choice."""
KEPT_NUMBERS = 2**29  # 2 GiB in float32: a library with more numbers stays on disk


def augment(flat: Tensor, config: LaeTrainingConfig, generator: torch.Generator) -> Tensor:
    """LoRA mixup: a fraction of the rows becomes a convex combination with another row, (B, P) -> (B, P)."""
    share = torch.rand(len(flat), 1, generator=generator)  # (B, 1)
    share = torch.where(torch.rand(len(flat), 1, generator=generator) < config.mixup, share, 0.0).to(
        flat
    )  # (B, 1)
    return torch.lerp(
        flat, flat[torch.randperm(len(flat), generator=generator).to(flat.device)], share
    )  # (B, P)


def noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise of x's shape from a CPU generator."""
    return torch.randn(x.shape, generator=generator).to(x)


def split_library(count: int, held_out: float) -> tuple[slice, slice]:
    """People to train on, and the last ones to measure on (at least one of each)."""
    kept = min(max(1, count - max(1, round(held_out * count))), count - 1)
    return slice(0, kept), slice(kept, count)


def weight_reader(
    library: WeightRows, normalisation: LoraNormalisation, device: torch.device | str
) -> Callable[[Tensor], Tensor]:
    """Function that gives normalised weights: rows (B,) -> (B, P) on the device.

    A small library is kept there; of a large one only the rows asked for are read, at every step anew.
    """
    normalisation = normalisation.to(device)
    if library.shape[0] * library.shape[1] > KEPT_NUMBERS:
        return lambda rows: normalisation.normalise(library[rows].to(device).float())
    flat = torch.cat(
        [normalisation.normalise(part.to(device).float()) for part in library.split(ROWS_AT_ONCE)]
    )  # (n, P)
    return lambda rows: flat[rows.to(device)]


def first_rows(part: slice, count: int = MEASURED_ROWS) -> Tensor:
    """Numbers of the first rows of a part of the library, (n,), n <= count."""
    return torch.arange(part.start, min(part.stop, part.start + count))


@torch.no_grad()
def measure(lae: LoraAutoencoder, flat: Tensor) -> float:
    """R2 of reconstruction over normalised weights (n, P)."""
    lae.train(False)
    decoded = torch.cat([lae.decode(lae.encode(part)) for part in flat.split(64)])  # (n, P)
    lae.train()
    return float(explained_variance(decoded, flat))


def train(
    library: WeightRows,
    layout: LoraLayout,
    lae_config: LaeConfig,
    config: LaeTrainingConfig,
    folder: Path,
    device: torch.device | str = "cpu",
    network: Callable[[LoraLayout, LaeConfig], LoraAutoencoder] = LoraAutoencoder,
    loss_of: Callable[[Tensor, Tensor, float, float], Tensor] = lae_loss,
) -> tuple[LoraAutoencoder, LoraNormalisation]:
    """Train on raw weights (n, P), resuming what the folder holds -> averaged LAE and its normalisation.

    `network` and `loss_of` are for comparing others with ours: see `LoraAutoencoder` and `lae_loss`.
    """
    training, held_out = split_library(len(library), config.held_out)
    normalisation = LoraNormalisation.fit(library[training], layout)
    read = weight_reader(library, normalisation, device)
    torch.manual_seed(config.seed)
    lae = network(layout, lae_config).to(device)
    if lae_config.linear_rank:
        shown = min(training.stop, COMPONENT_ROWS, KEPT_NUMBERS // library.shape[1])
        lae.start_from_components(read(first_rows(training, shown)))
    average = Average(lae, config.ema_decay)
    optimiser = torch.optim.AdamW(
        lae.parameters(), config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
    )
    start, state_path = 0, folder / "state.safetensors"
    if state_path.is_file():
        state = load_state(state_path)
        lae.load_state_dict(state["lae"])
        average.module.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        start = state["step"]
    bar = progress_bar(config.num_steps, "LAE", start)
    with MetricsWriter(folder / "metrics.jsonl", start) as metrics, polite_interruption() as interrupted:
        for step in range(start, config.num_steps):
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            rows = torch.randint(training.stop, (config.batch_size,), generator=generator)  # (B,)
            target = augment(read(rows), config, generator)  # (B, P)
            latent = lae.encode(target + config.input_noise * noise_like(target, generator))  # (B, S, C)
            spread = (
                latent.detach().std(dim=0).clamp_min(1e-3)
            )  # (S, C); noise relative to the latent's own spread
            latent = latent + config.latent_noise * spread * noise_like(latent, generator)  # (B, S, C)
            loss = loss_of(
                lae.decode(latent), target, lae_config.weight_preserving, lae_config.weight_cap
            ).mean()
            optimiser.param_groups[0]["lr"] = rate_at(
                step, config.num_steps, config.learning_rate, config.warmup
            )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(lae.parameters(), 1.0)
            optimiser.step()
            average.update(step)
            bar.update(1)

            done = step + 1 == config.num_steps
            if (step + 1) % REPORT_EVERY == 0 or done:
                train_r2 = measure(average.module, read(first_rows(training, MEASURED_ROWS // 2)))
                held_out_r2 = measure(average.module, read(first_rows(held_out)))
                metrics.write(step + 1, loss=float(loss.detach()), train_r2=train_r2, held_out_r2=held_out_r2)
                bar.set_postfix_str(f"R2 {train_r2:.3f}, held out {held_out_r2:.3f}")
            if (step + 1) % SAVE_EVERY == 0 or done or interrupted():
                weights = {"lae": lae.state_dict(), "average": average.module.state_dict()}
                save_state(state_path, {**weights, "optimiser": optimiser.state_dict(), "step": step + 1})
            if interrupted():
                raise SystemExit(130)
    bar.close()
    return average.module.train(False), normalisation


@dataclass(frozen=True, eq=False)
class TrainedLae:
    """What a finished run leaves behind.

    Args:
        lae: averaged weights.
        layout: of the LoRAs.
        normalisation: of the library.
        held_out: fraction of the library, its last people, that was never trained on.
    """

    lae: LoraAutoencoder
    layout: LoraLayout
    normalisation: LoraNormalisation
    held_out: float

    def save(self, path: Path) -> None:
        """Write everything to one file."""
        config = asdict(self.lae.config)
        state = {"layout": self.layout.to_json(), "config": config, "held_out": self.held_out}
        save_state(
            path, {**state, "lae": self.lae.state_dict(), "normalisation": self.normalisation.tensors()}
        )

    @classmethod
    def load(cls, path: Path) -> "TrainedLae":
        """Inverse of `save`.

        Raises:
            CheckpointError: missing, damaged, older or newer file.
        """
        state = load_state(path)
        layout = LoraLayout.from_json(state["layout"])
        lae = LoraAutoencoder(layout, config_from_fields(LaeConfig, state["config"]))
        try:
            lae.load_state_dict(state["lae"])
        except RuntimeError as error:
            raise CheckpointError(
                f"{path} is of another version of this package: run train_lae again"
            ) from error
        normalisation = LoraNormalisation.from_tensors(state["normalisation"], layout)
        return cls(lae.train(False), layout, normalisation, state["held_out"])


def main(arguments: list[str] | None = None) -> None:
    """Read the options, train, save, plot."""
    parser = argparse.ArgumentParser(description="Train the LoRA weight autoencoder (LAE).")
    library_option(parser, "runs/loras_amortised")
    parser.add_argument("--out", type=Path, default=Path("runs/lae"), help="run folder, resumed if it exists")
    parser.add_argument("--preset", default="synthetic", help=", ".join(PRESETS))
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    config_options(parser, LaeTrainingConfig)
    options = parser.parse_args(arguments)
    chosen = preset(options.preset)
    config = apply_options(chosen.lae, options)

    library = load_library(options.loras, mapped=True)
    settings = {"lae": asdict(chosen.networks.lae), "training": asdict(config)}
    open_run(options.out, {**settings, "layout": library.layout.fingerprint, "library": len(library.flat)})
    lae, normalisation = train(
        library.flat, library.layout, chosen.networks.lae, config, options.out, options.device
    )
    TrainedLae(lae, library.layout, normalisation, config.held_out).save(options.out / "lae.safetensors")
    plot_metrics(options.out / "metrics.jsonl", options.out / "lae.png", ("loss", "train_r2", "held_out_r2"))
    say(f"LAE saved to {options.out / 'lae.safetensors'}")


if __name__ == "__main__":
    try:
        main()
    except DiffLoRAError as error:
        sys.exit(f"error: {error}")

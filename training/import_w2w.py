r"""Import weights2weights, 64,974 identity LoRAs for SD 1.5, as a library (docs/import_w2w.md is the recipe).

    python -m training.import_w2w --weights all_weights.pt --identities identity_df.pt \\
        --photos w2w-celeba-generated --base realistic-vision-v51 --out runs/loras_w2w

Dravid et al. 2024, arXiv 2406.09413; the weights' licence is non-commercial. Rank 1, alpha 27, lora_down and
lora_up of to_q and to_v of both attentions of every block, module by module: a row of the file is a flat
vector of a layout with `train_down`. All were trained from one initialisation, so none is aligned: the gauge
(up / g, g down) is the same in all of them. Their mean then holds that initialisation (`lora_down`) and what
every training has in common, the class "person" and the pictures' look (`lora_up`); the rest is people.

Nothing is unpickled: the tables are read by torch's `weights_only` reader (`training.w2w_tables`).
Letters: N LoRAs that are imported, B of a shard, P numbers of one.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a file: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from difflora.base_model import denoiser_file, file_fingerprint
from difflora.errors import CheckpointError, DiffLoRAError, LayoutError, PhotoError
from difflora.files import save_safetensors, tensor_shapes
from difflora.layout import LoraLayout, ModuleSpec, listing
from difflora.model_family import family_of
from training.common import open_run, polite_interruption, progress_bar, say
from training.lora_library import Shard
from training.pictures import PhotoFolders
from training.w2w_tables import Identity, check_dimensions, load_tensor_file, read_identities

BLOCKS = (
    *(f"down_blocks.{level}.attentions.{layer}" for level in (0, 1, 2) for layer in (0, 1)),
    "mid_block.attentions.0",
    *(f"up_blocks.{level}.attentions.{layer}" for level in (1, 2, 3) for layer in (0, 1, 2)),
)
PROJECTIONS = ("attn1.to_q", "attn1.to_v", "attn2.to_q", "attn2.to_v")
MODULES = tuple(
    f"{block}.transformer_blocks.0.{projection}" for block in BLOCKS for projection in PROJECTIONS
)
RANK, ALPHA = 1, 27.0
ONE_INITIALISATION = 0.5
"""Cosine between two people's `lora_down`. From one start they stay near it (it moves by a fraction of its
own length), from two it is 0 +- .06 at 320 numbers."""


def w2w_layout(shapes: Mapping[str, Sequence[int]]) -> LoraLayout:
    """Order and sizes of weights2weights' numbers, for a base model's weights.

    Args:
        shapes: name of a weight of the denoiser -> its shape; SD 1.5's give 99,648 numbers.

    Raises:
        LayoutError: not SD 1.5, or not built like it.
    """
    missing = [name for name in MODULES if len(shapes.get(f"{name}.weight", ())) != 2]
    if missing:
        raise LayoutError(
            f"weights2weights' LoRAs are for SD 1.5, but the base model is {family_of(shapes)} and lacks "
            f"{listing(missing, limit=2)}: give the folder of realistic-vision-v51 with --base"
        )
    specs = []
    for name in MODULES:
        out_features, in_features = shapes[f"{name}.weight"]
        specs.append(ModuleSpec(name, in_features, out_features))
    return LoraLayout(tuple(specs), RANK, ALPHA, train_down=True)


@dataclass(frozen=True)
class Row:
    """One LoRA of the file that is imported: its row, and the number of its person's photo folder."""

    number: int
    folder: int


def choose_rows(
    identities: Sequence[Identity], folders: Sequence[Path], limit: int | None = None
) -> list[Row]:
    """Rows whose person has photos; rows of one person stand together, so that a split hardly divides them.

    A folder is named as the row, or as the row's file without its ending (`000123.jpg` -> `000123`).

    Args:
        identities: of all rows, in the file's order.
        folders: of photos, as `PhotoFolders` numbers them.
        limit: take at most so many.

    Returns:
        In the file's order, but for people with several rows.

    Raises:
        PhotoError: nobody has photos.
    """
    numbers = {folder.name: number for number, folder in enumerate(folders)}
    rows, people = [], {}
    for number, identity in enumerate(identities):
        folder = numbers.get(identity.name, numbers.get(Path(identity.name).stem))
        if folder is not None:
            rows.append(Row(number, folder))
            people.setdefault(identity.person, number)
    if not rows:
        raise PhotoError(
            f"no folder of photos is called like an identity: the table has {identities[0].name!r}, the "
            f"photos {folders[0].name!r}: give the table's column with --folder-column, or rename folders"
        )
    if dropped := len(identities) - len(rows):
        say(f"{dropped} of {len(identities)} identities have no folder of photos and are left out")
    rows.sort(key=lambda row: (people[identities[row.number].person], row.number))
    return rows[:limit]


def convert(source: Path, rows: Sequence[Row], layout: LoraLayout) -> Tensor:
    """Rows of the file as flat weights (B, P), float16; the file is mapped anew to let its pages go.

    Raises:
        CheckpointError: not the file that is expected, or damaged numbers.
    """
    weights = open_weights(source, layout)
    numbers = [row.number for row in rows]
    # A slice is read in one go; what float16 cannot hold becomes infinite.
    run = slice(numbers[0], numbers[-1] + 1)
    flat = weights[run if numbers == list(range(run.start, run.stop)) else numbers].half()  # (B, P)
    if not bool(flat.isfinite().all()):
        bad = numbers[int((~flat.isfinite()).any(dim=1).nonzero()[0])]
        raise CheckpointError(f"{source}: row {bad} is not finite: the file is damaged, download it again")
    return flat


def open_weights(source: Path, layout: LoraLayout) -> Tensor:
    """The file's matrix, memory-mapped.

    Raises:
        CheckpointError: not a matrix of the layout's width.
    """
    weights = load_tensor_file(source)
    if not isinstance(weights, Tensor) or weights.ndim != 2 or weights.shape[1] != layout.num_parameters:
        shape = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise CheckpointError(
            f"{source} holds {shape}, for this base model it has to be a matrix of {layout.num_parameters} "
            "columns: give weights2weights' all_weights.pt, and SD 1.5 as the base model"
        )
    return weights


def start_cosine(flat: Tensor, reference: Tensor, layout: LoraLayout) -> float:
    """Mean cosine between the `lora_down` of LoRAs (B, P) and of a reference (P,), over modules and LoRAs."""
    own, other = layout.unflatten(flat.float()), layout.unflatten(reference.float())
    cosines = [
        torch.cosine_similarity(own[key].flatten(1), other[key].flatten(), dim=-1)  # (B,)
        for key in own
        if key[1] == "lora_down"
    ]
    return float(torch.stack(cosines).mean())


def import_rows(source: Path, rows: Sequence[Row], layout: LoraLayout, folder: Path, batch: int) -> int:
    """Write the shards that are not there yet; a kill loses at most the one in flight.

    Args:
        source: `all_weights.pt`.
        rows: what to import.
        layout: of the rows.
        folder: of the library.
        batch: LoRAs of a shard.

    Returns:
        LoRAs written.
    """
    written = 0
    with progress_bar(len(rows), "LoRAs") as bar, polite_interruption() as interrupted:
        for number, start in enumerate(range(0, len(rows), batch)):
            part = rows[start : start + batch]
            path = folder / "train" / f"shard-{number:05d}.safetensors"
            shard = Shard(number, path, tuple(row.folder for row in part))
            if not shard.is_done():
                flat = convert(source, part, layout)  # (B, P)
                if number == 0 and len(part) > 1:
                    say_start(start_cosine(flat[1:], flat[0], layout))
                tensors = {"flat_weights": flat, "people": torch.tensor(shard.people)}  # (B, P), (B,)
                save_safetensors(path, tensors, {"layout_fingerprint": layout.fingerprint})
                written += len(part)
            bar.update(len(part))
            if interrupted():
                say("stopped after a whole shard: run the same command again to go on")
                break
    return written


def say_start(cosine: float) -> None:
    """Report whether the LoRAs share an initialisation, as numbers of one row can only then be compared."""
    if cosine > ONE_INITIALISATION:
        say(f"lora_down has cosine {cosine:.3f} between people: one initialisation, nothing to align")
    else:
        say(
            f"warning: lora_down has cosine {cosine:.3f} between people, so they were not trained from one "
            "initialisation and cannot be compared number by number: an LAE will learn little from them"
        )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.import_w2w", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--weights", type=Path, required=True, help="all_weights.pt")
    parser.add_argument(
        "--identities", type=Path, required=True, help="identity_df.pt, or a .csv of the same table"
    )
    parser.add_argument(
        "--dimensions", type=Path, help="weight_dimensions.pt: checks the order of the numbers"
    )
    parser.add_argument("--photos", type=Path, required=True, help="one folder of photos per identity")
    parser.add_argument("--base", type=Path, required=True, help="diffusers folder of realistic-vision-v51")
    parser.add_argument("--out", type=Path, default=Path("runs/loras_w2w"), help="folder of the library")
    parser.add_argument(
        "--folder-column", help="column with the names of photo folders (default: the table's index)"
    )
    parser.add_argument("--people", type=int, help="import at most so many")
    parser.add_argument("--batch", type=int, default=256, help="LoRAs in a shard, and in memory at once")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments, data, loop, save."""
    options = parse(arguments)
    base_file = denoiser_file(options.base)
    layout = w2w_layout(tensor_shapes(base_file))
    if options.dimensions is not None:
        check_dimensions(load_tensor_file(options.dimensions), layout)
    count = len(open_weights(options.weights, layout))
    identities = read_identities(options.identities, options.folder_column)
    if len(identities) != count:
        raise CheckpointError(
            f"{options.identities} has {len(identities)} rows, {options.weights} {count}: they do not belong "
            "together, download both again"
        )
    photos = PhotoFolders(options.photos, 1)
    rows = choose_rows(identities, photos.folders(), options.people)
    folder = open_run(
        options.out,
        {
            "base_model": options.base.resolve().name,
            "base_model_fingerprint": file_fingerprint(base_file),
            "layout": layout.to_json(),
            "source": {"weights2weights": [options.weights.name, options.weights.stat().st_size, count]},
            "people": photos.description(),
            "number_of_people": len(rows),
            "batch": options.batch,
        },
    )
    written = import_rows(options.weights, rows, layout, folder, options.batch)
    say(f"{written} LoRAs written, {len(rows)} in all in {folder}")


if __name__ == "__main__":
    try:
        main()
    except DiffLoRAError as error:
        sys.exit(f"error: {error}")

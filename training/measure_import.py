"""Throughput and memory of the import, and time of a training step: `python -m training.measure_import`.

Makes a file of weights2weights' format with random numbers (2,000 rows are 800 MB), imports it in a process
of its own, takes steps of the LAE on the result, and writes docs/import_w2w.json; the file is deleted then.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from difflora.autoencoder import LoraAutoencoder, lae_loss
from difflora.errors import DiffLoRAError
from difflora.files import atomic_save
from difflora.layout import LoraLayout
from difflora.normalisation import LoraNormalisation
from training.common import machine, say
from training.import_w2w import BLOCKS, MODULES, Row, import_rows, w2w_layout
from training.lora_library import load_library
from training.presets import preset

PUBLISHED_ROWS = 64_974
WIDTHS = (320, 320, 640, 640, 1280, 1280, 1280, 1280, 1280, 1280, 640, 640, 640, 320, 320, 320)
"""Of SD 1.5's blocks, in the order of `BLOCKS`."""
PROMPT_WIDTH = 768
LAE_STEPS = 3


def sd15_layout() -> LoraLayout:
    """weights2weights' layout for SD 1.5, from the published sizes alone: no weights are needed."""
    widths = dict(zip(BLOCKS, WIDTHS, strict=True))
    shapes = {}
    for name in MODULES:
        width = widths[name.split(".transformer_blocks")[0]]
        shapes[f"{name}.weight"] = (width, PROMPT_WIDTH if name.endswith("attn2.to_v") else width)
    return w2w_layout(shapes)


def make_source(path: Path, rows: int, layout: LoraLayout) -> None:
    """Random rows around one start, as far apart as the published ones (lora_down .02, changes .005)."""
    generator = torch.Generator().manual_seed(0)
    start = 0.02 * torch.randn(layout.num_parameters, generator=generator)  # (P,)
    weights = torch.empty(rows, layout.num_parameters)  # (N, P)
    for part in weights.split(100):
        part.copy_(start + 0.005 * torch.randn(part.shape, generator=generator))
    torch.save(weights, path)


def peak_memory_mb() -> float:
    """Most memory that this process has had, mapped pages included, in MB.

    Not `ru_maxrss` where there is another way: Linux lets a child inherit its parent's.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1000
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def run_import(source: Path, out: Path, rows: int, batch: int) -> None:
    """What the child process does: imports, and prints seconds and peak memory, before and after."""
    before, started, worked = peak_memory_mb(), time.monotonic(), time.process_time()
    import_rows(source, [Row(number, number) for number in range(rows)], sd15_layout(), out, batch)
    values = {
        "seconds": time.monotonic() - started,
        "cpu_seconds": time.process_time() - worked,
        "peak_rss_mb": peak_memory_mb(),
        "rss_of_libraries_mb": before,
    }
    atomic_save(out / "measured.json", lambda path: path.write_text(json.dumps(values), encoding="utf-8"))


def lae_step_seconds(out: Path, layout: LoraLayout, preset_name: str) -> dict[str, float]:
    """CPU seconds of one LAE step on this machine, and how many numbers are trained."""
    chosen = preset(preset_name)
    library = load_library(out, mapped=True)
    normalisation = LoraNormalisation.fit(library.flat[:256], layout)
    lae = LoraAutoencoder(layout, chosen.networks.lae)
    optimiser = torch.optim.AdamW(lae.parameters(), 1e-3)
    times = []
    for step in range(LAE_STEPS):
        started = time.process_time()
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(len(library.flat), (chosen.lae.batch_size,), generator=generator)  # (B,)
        target = normalisation.normalise(library.flat[rows].float())  # (B, P)
        loss = lae_loss(lae.decode(lae.encode(target)), target, 1.0, 5.0).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        times.append(time.process_time() - started)
    parameters = sum(parameter.numel() for parameter in lae.parameters())
    return {"cpu_seconds": min(times), "batch_size": chosen.lae.batch_size, "parameters": parameters}


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments, file, import in a child, LAE steps, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--preset", default="w2w")
    parser.add_argument("--out", type=Path, default=Path("docs/import_w2w.json"))
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child is not None:
        run_import(options.child / "all_weights.pt", options.child / "library", options.rows, options.batch)
        return
    layout = sd15_layout()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_source(folder / "all_weights.pt", options.rows, layout)
        command = [sys.executable, "-m", "training.measure_import", "--child", name]
        subprocess.run([*command, "--rows", str(options.rows), "--batch", str(options.batch)], check=True)
        library = folder / "library"
        measured = json.loads((library / "measured.json").read_text(encoding="utf-8"))
        config = {"layout": layout.to_json()}
        (library / "config.json").write_text(json.dumps(config), encoding="utf-8")
        step = lae_step_seconds(library, layout, options.preset)
        size = (folder / "all_weights.pt").stat().st_size
    rate = options.rows / measured["seconds"]
    report = {
        "command": f"python -m training.measure_import --rows {options.rows}",
        "machine": machine(),
        "load": os.getloadavg()[0],
        "rows": options.rows,
        "source_mb": size / 1e6,
        "batch": options.batch,
        **measured,
        "rows_per_second": rate,
        "mb_per_second": size / 1e6 / measured["seconds"],
        "derived_minutes_for_64974_rows": PUBLISHED_ROWS / rate / 60,
        "lae_step": {"preset": options.preset, **step},
    }
    text = json.dumps(report, indent=1)
    atomic_save(options.out, lambda path: path.write_text(text + "\n", encoding="utf-8"))
    say(text)


if __name__ == "__main__":
    try:
        main()
    except DiffLoRAError as error:
        sys.exit(f"error: {error}")

"""What one photo -> one LoRA costs: `python -m training.evaluation_cost` prints JSON.

A process of its own, so that its peak memory is that of nothing else.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from difflora.errors import DiffLoRAError
from difflora.model import EMBEDDED_CHECKPOINT, DiffLoRA
from difflora.photos import as_arrays
from difflora.synthetic import world
from training.evaluation_people import photos_of
from training.measure_import import peak_memory_mb

REPEATS = 5


def measure(checkpoint: Path, face_pack: Path, device: str) -> dict[str, float]:
    """Load, then go from a photo to a LoRA several times.

    Returns:
        CPU seconds of loading, of the first photo -> LoRA and of the median one after it; peak memory in MB
        of the process, and what of it the imported libraries alone had taken.
    """
    libraries, started = peak_memory_mb(), time.process_time()
    model = DiffLoRA.load(checkpoint, face_pack, world.IMAGE_ENCODER, device)
    loading = time.process_time() - started
    photo = as_arrays(photos_of("test", 0, 1))
    seconds = []
    for seed in range(REPEATS):
        started = time.process_time()
        model.generate(model.encode(photo), seed=seed)
        seconds.append(time.process_time() - started)
    return {
        "loading_seconds": round(loading, 3),
        "first_seconds": round(seconds[0], 3),
        "seconds": round(sorted(seconds[1:])[(REPEATS - 1) // 2], 3),
        "peak_mb": round(peak_memory_mb()),
        "libraries_mb": round(libraries),
    }


def measure_in_a_process(checkpoint: Path, face_pack: Path, device: str) -> dict[str, float]:
    """`measure`, in a process of its own.

    Raises:
        DiffLoRAError: it failed; with its last words.
    """
    command = [sys.executable, "-m", "training.evaluation_cost", "--device", device]
    command += ["--checkpoint", str(checkpoint.resolve()), "--face-pack", str(face_pack.resolve())]
    root = Path(__file__).resolve().parents[1]
    run = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    if run.returncode:
        raise DiffLoRAError(f"measuring the cost of a LoRA failed: {run.stderr.strip()[-300:]}")
    return json.loads(run.stdout)


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=EMBEDDED_CHECKPOINT, help="of DiffLoRA")
    parser.add_argument("--face-pack", type=Path, default=world.FACE_PACK, help="of the checkpoint")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # as `training.evaluate`
    print(json.dumps(measure(options.checkpoint, options.face_pack, options.device)))


if __name__ == "__main__":
    main()

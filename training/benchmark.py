"""Speed, side by side in one run: `python -m training.benchmark` writes docs/benchmark.json and .md.

1. Generating an SDXL LoRA, without the shared encoders: ours (MIF, DiT, LAE decoder), a regressor of
   HyperLoRA's sizes (`training.regressor`), and LoRA training on the full U-Net, a few steps of it times
   `--train-steps`.
2. Applying a LoRA in a real ComfyUI: ours against what core's LoraLoader does (`benchmarks/in_host.py`).
3. A sampling step with a merged LoRA against one without, in the same place.

Weights are random and SDXL-shaped (`--size mini`: narrow, for trying this script out). On the CPU the full
run needs some 15 GB of memory.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if not __package__:  # run as a file: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from difflora.base_model import BaseModel
from difflora.errors import DiffLoRAError
from difflora.files import atomic_save
from difflora.layout import init_shared_down
from difflora.lora_training import LoraTrainingConfig, train_loras
from difflora.pipelines import pooled_text_width
from training.base_presets import MINI_SDXL, SDXL, BasePreset
from training.benchmark_report import markdown, ratios
from training.common import machine, say
from training.preset_sizes import count, random_features, random_model
from training.presets import Preset, preset
from training.regressor import LoraRegressor, RegressorConfig

PARTS = ("generation", "training", "host")
IN_HOST = Path(__file__).resolve().parents[1] / "benchmarks" / "in_host.py"
PROBE = "middle_block.1.transformer_blocks.9.attn2.to_v.weight"  # a weight that every LoRA here changes


@dataclass(frozen=True)
class Size:
    """What is built.

    Args:
        base: the base model.
        networks: preset with the sizes of our networks.
        regressor: sizes of the regressor.
        head_channels: width of an attention head of the U-Net.
    """

    base: BasePreset
    networks: str
    regressor: RegressorConfig
    head_channels: int


SIZES = {
    "sdxl": Size(SDXL, "sdxl", RegressorConfig(), 64),
    "mini": Size(MINI_SDXL, "tiny", RegressorConfig(32, 1, 2, 4, 9, 16, 2), 32),
}


def summary(values: list[float]) -> dict[str, Any]:
    """Median and all single measurements, seconds."""
    return {"median": statistics.median(values), "all": [round(value, 5) for value in values]}


def interleave(
    functions: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Time functions in turns, so that what the machine does meanwhile hits all of them alike.

    Args:
        functions: name -> what is timed; each runs once before, untimed.
        rounds: measurements of each.
        device: waited for.

    Returns:
        name -> seconds.
    """

    def timed(function: Callable[[], object]) -> float:
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    for function in functions.values():
        timed(function)
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds):
        for name in sorted(functions, reverse=bool(number % 2)):
            times[name].append(timed(functions[name]))
    return times


def measure_generation(
    size: Size, chosen: Preset, options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Ours and the regressor, one photo each; leaves our LoRA in the folder as lora.safetensors."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    model = random_model(chosen, size.base, dtype, device)
    features = random_features(model, num_photos=1)
    layout = size.base.layout(rank=options.regressor_rank, train_down=True)
    regressor = LoraRegressor(layout, size.regressor).to(device, dtype).train(False).requires_grad_(False)
    sizes = size.regressor
    image = torch.randn(1, sizes.image_tokens, sizes.image_width).to(device, dtype)  # (1, T, C)
    face = torch.randn(1, sizes.face_width).to(device, dtype)  # (1, 512)
    ways = {
        "ours": lambda: model.generate(features, noise_scale=1.0),
        "regressor": lambda: regressor(image, face),
    }
    with torch.inference_mode():
        times = interleave(ways, options.rounds, device)
    report = {name: {"seconds": summary(values)} for name, values in times.items()}
    ours = model.layout
    report["ours"] |= {
        "network_parameters": count(model.checkpoint.networks),
        "lora_parameters": size.base.layout(rank=ours.rank, train_down=True).num_parameters,
        "generated_parameters": ours.num_parameters,
        "sampler_steps": model.recommended.num_steps,
    }
    report["regressor"] |= {
        "network_parameters": count(regressor),
        "lora_parameters": layout.num_parameters,
        "generated_parameters": layout.num_parameters,
        "rank": options.regressor_rank,
    }
    return report


def random_lora(size: Size, chosen: Preset, path: Path) -> None:
    """A LoRA file of about the size of trained ones, for the host."""
    model = random_model(chosen, size.base)
    lora = model.generate(random_features(model), noise_scale=1.0)
    generator = torch.Generator().manual_seed(0)
    for up in lora.up.values():
        up.copy_(0.01 * torch.randn(up.shape, generator=generator))
    lora.save(path, dtype=torch.float32)


def random_base(base: BasePreset, device: torch.device) -> BaseModel:
    """A base model of random weights, as much of it as training needs."""
    unet = base.build_unet().to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in unet.parameters():
        parameter.data.uniform_(-0.02, 0.02, generator=generator)
    unet = unet.train(False).requires_grad_(False)
    levels = len(base.autoencoder["block_out_channels"])
    autoencoder = SimpleNamespace(config=SimpleNamespace(block_out_channels=(1,) * levels))
    alphas = torch.linspace(0.9999, 0.005, 1000, device=device)
    width = pooled_text_width(base.name, unet.config)
    return BaseModel(base.name, unet, None, None, autoencoder, alphas, "epsilon", (), width)


def measure_training(size: Size, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one optimiser step of an ordinary LoRA (both factors) of one person, batch 1."""
    device = torch.device(options.device)
    base = random_base(size.base, device)
    layout = size.base.layout(train_down=True)
    side = options.train_px // base.pixels_per_latent
    latents = torch.randn(1, 1, 4, side, side, device=device)  # (B, n, C, h, w)
    text = torch.randn(1, 78, size.base.unet["cross_attention_dim"], device=device)  # (n, T, W), 77 + pooled
    marks = [time.perf_counter()]
    config = LoraTrainingConfig(
        num_steps=options.measured_train_steps + 1,
        pictures_per_step=1,
        learning_rate=1e-4,
        precision="bfloat16" if device.type == "cuda" else "float32",
    )
    train_loras(
        base,
        layout,
        latents,
        text,
        config,
        torch.Generator().manual_seed(0),
        init_shared_down(layout),
        progress=lambda *_: marks.append(time.perf_counter()),
    )
    steps = [after - before for before, after in itertools.pairwise(marks[1:])]  # without warm-up
    return {
        "seconds_per_step": summary(steps),
        "steps": options.train_steps,
        "seconds": statistics.median(steps) * options.train_steps,
        "picture_px": options.train_px,
        "extrapolated": f"{len(steps)} steps measured, times {options.train_steps}; batch 1, no prior "
        "pictures, no loading: a real DreamBooth run costs more",
    }


def measure_host(size: Size, chosen: Preset, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Applying and sampling in ComfyUI.

    Raises:
        DiffLoRAError: there is no ComfyUI, or the script failed in it.
    """
    root = options.comfyui
    if not (root / "main.py").is_file():
        raise DiffLoRAError(f"no ComfyUI at {root}: give --comfyui, or leave the part 'host' out")
    own = root / ".venv" / "bin" / "python"
    python = options.comfyui_python or (own if own.exists() else sys.executable)
    random_lora(size, chosen, folder / "lora.safetensors")
    unet = size.base.unet
    settings = {
        "unet": {
            "model_channels": unet["block_out_channels"][0],
            "num_head_channels": size.head_channels,
            "context_dim": unet["cross_attention_dim"],
            "adm_in_channels": unet["projection_class_embeddings_input_dim"],
        },
        "rounds": options.host_rounds,
        "steps": options.host_steps,
        "latent_side": options.host_px // 8,
        "device": options.device,
        "dtype": options.dtype,
        "threads": options.threads,
        "probe": PROBE,
    }
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    run = subprocess.run([python, IN_HOST, root, folder], capture_output=True, text=True, check=False)
    if run.returncode:
        raise DiffLoRAError(f"the benchmark failed in ComfyUI: {run.stderr[-3000:]}")
    report = json.loads((folder / "host.json").read_text(encoding="utf-8"))
    return {
        "seconds": {name: summary(values) for name, values in report["seconds"].items()},
        "picture_px": options.host_px,
        "peak_process_bytes": report["peak_process_bytes"],
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.benchmark", description=__doc__)
    parser.add_argument("--size", choices=tuple(SIZES), default="sdxl")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of benchmark.json and .md")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each generator")
    parser.add_argument("--regressor-rank", type=int, default=8, help="of its LoRAs; published: 8")
    parser.add_argument("--train-steps", type=int, default=100, help="that training is said to take")
    parser.add_argument("--measured-train-steps", type=int, default=3, help="of them really done")
    parser.add_argument("--train-px", type=int, default=256, help="picture size in training; real: 1024")
    parser.add_argument("--host-rounds", type=int, default=5, help="applications of each kind")
    parser.add_argument("--host-steps", type=int, default=3, help="sampling steps after each")
    parser.add_argument("--host-px", type=int, default=256, help="picture size of sampling steps")
    home = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    parser.add_argument("--comfyui", type=Path, default=home, help="checkout (default: $COMFYUI_PATH)")
    parser.add_argument("--comfyui-python", type=Path, help="default: of the checkout's .venv")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure the parts one after the other, so that memory is free again; write, print."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    size, device = SIZES[options.size], torch.device(options.device)
    chosen = preset(size.networks)
    # the small preset is for another base model; what a LoRA is, is the real one's
    chosen = Preset(chosen.networks, lora_library=preset("sdxl").lora_library)
    report: dict[str, Any] = {
        "command": "python -m training.benchmark "
        + " ".join(sys.argv[1:] if arguments is None else arguments),
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else machine(),
        **{name: getattr(options, name) for name in ("size", "device", "dtype", "threads")},
    }
    with tempfile.TemporaryDirectory() as folder:
        # the host first: what this process keeps of the other parts would leave it too little memory
        if "host" in options.parts:
            say("in ComfyUI ...")
            report["host"] = measure_host(size, chosen, options, Path(folder))
        if "generation" in options.parts:
            say("generating ...")
            report["generation"] = measure_generation(size, chosen, options, Path(folder))
        if "training" in options.parts:
            say("training ...")
            report["training"] = measure_training(size, options)
    report["ratios"] = ratios(report)
    texts = {"benchmark.json": json.dumps(report, indent=1) + "\n", "benchmark.md": markdown(report)}
    for file, text in texts.items():
        atomic_save(options.out / file, lambda path, text=text: path.write_text(text, encoding="utf-8"))
    print(texts["benchmark.md"])


if __name__ == "__main__":
    try:
        main()
    except DiffLoRAError as error:
        sys.exit(f"error: {error}")

"""What the presets of real base models cost: `python -m training.preset_sizes` writes docs/presets.{json,md}.

Parameters are counted, floating-point operations are counted by torch in one real generation, and memory is
what that generation allocates. Weights are random: nothing of this depends on their values.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

if not __package__:  # run as a file: the repository root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import nn
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from difflora.checkpoint import Checkpoint
from difflora.errors import DiffLoRAError
from difflora.features import IdentityFeatures
from difflora.files import atomic_save
from difflora.hypernetwork import LoraHypernetwork
from difflora.layout import init_shared_down
from difflora.model import DiffLoRA
from difflora.vision_tower import VisionConfig, VisionTower
from training.base_presets import BASE_PRESETS, BasePreset
from training.common import machine
from training.presets import Preset, preset

NUM_PHOTOS = 4
MEMORY_TARGET = 2 * 2**30  # bytes for generating beside the encoders
Result = TypeVar("Result")


def real_preset(name: str) -> tuple[Preset, BasePreset]:
    """A preset and its base model.

    Raises:
        DiffLoRAError: it is not for a published base model.
    """
    chosen = preset(name)
    if chosen.base is None:
        raise DiffLoRAError(f"{name} has no published base model: use one of {', '.join(BASE_PRESETS)}")
    return chosen, chosen.base


def random_model(
    chosen: Preset,
    base: BasePreset,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> DiffLoRA:
    """The networks of a preset for a base model, untrained, without face models.

    Args:
        chosen: sizes.
        base: what the layout is of.
        dtype: of the networks.
        device: where they go.
    """
    library = chosen.lora_library
    layout = base.layout(library.targets, library.rank)
    networks = LoraHypernetwork(layout, chosen.networks).to_precision(dtype).to(device)
    down = {name: tensor.to(device) for name, tensor in init_shared_down(layout).items()}
    pack, encoder = base.face_packs[0], next(iter(base.image_encoders))
    networks = networks.train(False).requires_grad_(False)
    return DiffLoRA(Checkpoint(networks, down, base.name, pack, encoder))


def random_features(model: DiffLoRA, num_photos: int = NUM_PHOTOS) -> IdentityFeatures:
    """Features of nobody, of the widths that a model wants."""
    config = model.checkpoint.networks.config.mif
    generator = torch.Generator().manual_seed(0)
    face = torch.randn(num_photos, config.face_width, generator=generator)  # (N, 512)
    image = torch.randn(num_photos, config.image_width, generator=generator)  # (N, C)
    return IdentityFeatures(nn.functional.normalize(face, dim=-1), image)


def count(module: nn.Module | list[nn.Parameter]) -> int:
    """Parameters."""
    return sum(p.numel() for p in (module.parameters() if isinstance(module, nn.Module) else module))


def stored_bytes(model: DiffLoRA) -> int:
    """Weights, statistics, index tables and the shared lora_down of a loaded model."""
    networks = model.checkpoint.networks
    kept = [*networks.parameters(), *networks.buffers(), *(model.shared_down or {}).values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in kept)


def peak_of(function: Callable[[], Result], device: torch.device) -> tuple[Result, int]:
    """Call a function; its result, and the most bytes that it held at once beyond what there was before.

    On a GPU this is torch's own count; on the CPU every allocation and release is added up from a profile.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = function()
        return result, torch.cuda.max_memory_allocated(device) - before
    with profile(profile_memory=True) as recorded:
        result = function()
    held = peak = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return result, peak


def measure(name: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """All numbers of one preset."""
    chosen, base = real_preset(name)
    model = random_model(chosen, base, dtype, device)
    networks, features = model.checkpoint.networks, random_features(model)
    with FlopCounterMode(display=False) as flops:
        lora, peak = peak_of(lambda: model.generate(features, noise_scale=1.0), device)
    decoder = count(networks.lae.decoder_parameters())
    stored = stored_bytes(model)
    encoders = {}
    with torch.device("meta"):
        for encoder, sizes in base.image_encoders.items():
            tower = VisionTower(VisionConfig.from_json(dict(sizes)))
            encoders[encoder] = {"parameters": count(tower), "feature_width": tower.config.projection_dim}
    trained_down = base.layout(chosen.lora_library.targets, chosen.lora_library.rank, train_down=True)
    return {
        "base_model": base.name,
        "lora": {
            "targets": chosen.lora_library.targets,
            "modules": len(lora.up),
            "rank": model.layout.rank,
            "parameters": trained_down.num_parameters,
            "generated": model.layout.num_parameters,
        },
        "parameters": {
            "mif": count(networks.mif),
            "dit": count(networks.dit),
            "prior": 0 if networks.prior is None else count(networks.prior),
            "lae_encoder": count(networks.lae) - decoder,
            "lae_decoder": decoder,
            "all": count(networks),
        },
        "weight_tokens": networks.lae.num_tokens,
        "generation": {
            "sampler_steps": model.recommended.num_steps,
            "photos": NUM_PHOTOS,
            "gflops": flops.get_total_flops() / 1e9,
            "stored_bytes": stored,
            "peak_extra_bytes": peak,
            "total_bytes": stored + peak,
        },
        "face_packs": list(base.face_packs),
        "image_encoders": encoders,
    }


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    rows = {
        "LoRA": lambda p: f"{p['lora']['targets']}, {p['lora']['modules']} modules, rank {p['lora']['rank']}",
        "numbers of one LoRA": lambda p: f"{p['lora']['parameters'] / 1e6:.2f} M",
        "of them generated (`lora_up`)": lambda p: f"{p['lora']['generated'] / 1e6:.2f} M",
        "MIF": lambda p: f"{p['parameters']['mif'] / 1e6:.1f} M",
        "DiT": lambda p: f"{p['parameters']['dit'] / 1e6:.1f} M",
        "LAE encoder (training only)": lambda p: f"{p['parameters']['lae_encoder'] / 1e6:.1f} M",
        "LAE decoder": lambda p: f"{p['parameters']['lae_decoder'] / 1e6:.1f} M",
        "all networks": lambda p: f"{p['parameters']['all'] / 1e6:.1f} M",
        "one generation": lambda p: (
            f"{p['generation']['gflops']:.0f} GFLOP ({p['generation']['sampler_steps']} steps)"
        ),
        "memory: loaded": lambda p: f"{p['generation']['stored_bytes'] / 2**20:.0f} MiB",
        "memory: peak while generating": lambda p: f"{p['generation']['total_bytes'] / 2**20:.0f} MiB",
        "face pack": lambda p: " or ".join(p["face_packs"]),
        "image encoder (width, bfloat16)": lambda p: "<br>".join(
            f"{name} ({e['feature_width']}, {2 * e['parameters'] / 2**20:.0f} MiB)"
            for name, e in p["image_encoders"].items()
        ),
    }
    names = list(report["presets"])
    lines = ["# Presets of real base models", "", f"`{report['command']}` on {report['machine']}."]
    lines += [f"Networks in {report['dtype']}, random weights, {NUM_PHOTOS} photos.", ""]
    lines += [f"| | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for title, cell in rows.items():
        lines.append(f"| {title} | {' | '.join(cell(report['presets'][name]) for name in names)} |")
    return "\n".join([*lines, "", *REASONS, ""])


REASONS = (
    "Why these sizes:",
    "",
    "- Every weight token has its own linear map, so the LAE costs 2 x (numbers generated) x `token_width`:",
    "  width 16 for SDXL keeps encoder and decoder at 43 M each, where width 64 would need 170 M each.",
    "- The DiT is evaluated once for every sampler step, four times by default, on 32 latent tokens, far",
    "  less arithmetic than one pass of a 1,120-query resampler of depth 4 and width 1024, the usual",
    "  regressor ([benchmark](benchmark.md) has the times side by side).",
    "- 32 x 64 numbers of latent for SDXL: weights2weights' SD 1.5 identities live in 1,000 principal",
    "  components, SDXL LoRAs are larger. Unproven here: no library of real LoRAs was at hand.",
    "- Generating must fit in 2 GiB beside the encoders, in bfloat16: the peak above is well below that. The",
    "  encoder of the LAE is loaded too, although only training and importing use it.",
)


def main(arguments: list[str] | None = None) -> None:
    """Measure, write, refuse to call it done when the memory target is missed."""
    parser = argparse.ArgumentParser(prog="python -m training.preset_sizes", description=__doc__)
    parser.add_argument("--presets", nargs="+", default=list(BASE_PRESETS), choices=list(BASE_PRESETS))
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of presets.json and .md")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    options = parser.parse_args(arguments)
    dtype, device = getattr(torch, options.dtype), torch.device(options.device)
    report = {
        "command": "python -m training.preset_sizes",
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else machine(),
        "dtype": options.dtype,
        "presets": {name: measure(name, dtype, device) for name in options.presets},
    }
    for name, numbers in report["presets"].items():
        if (total := numbers["generation"]["total_bytes"]) > MEMORY_TARGET:
            raise DiffLoRAError(f"{name} takes {total / 2**20:.0f} MiB: choose smaller networks")
    texts = {"presets.json": json.dumps(report, indent=1) + "\n", "presets.md": table(report)}
    for file, text in texts.items():
        atomic_save(options.out / file, lambda path, text=text: path.write_text(text, encoding="utf-8"))
    print(texts["presets.md"])


if __name__ == "__main__":
    main()

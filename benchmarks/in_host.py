"""Runs inside ComfyUI's Python: what applying a LoRA costs, ours and core's, and what a sampling step costs.

Usage: ``python in_host.py COMFYUI WORK``, as `training.benchmark` calls it. WORK holds ``settings.json``
(widths of the U-Net, rounds, steps, latent side, device, dtype) and ``lora.safetensors``; ``host.json``
is written there: seconds of every measurement. Everything is interleaved, and who goes first alternates.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
import types
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PACK = Path(__file__).resolve().parents[1]


def import_host(comfyui: str, device: str) -> types.ModuleType:
    """The pack's ``nodes._host`` as a package with a name of its own, without the nodes' own imports."""
    sys.path.insert(0, comfyui)
    from comfy.cli_args import args

    args.cpu = device == "cpu"
    for name, path in (("pack", PACK), ("pack.nodes", PACK / "nodes")):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(path)]
    return import_module("pack.nodes._host")


def build_model(settings: dict[str, Any]) -> Any:  # noqa: ANN401 (the host's MODEL)
    """ComfyUI's SDXL of the given widths, with random weights."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    config = comfy.supported_models.SDXL(
        {
            "image_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "num_classes": "sequential",
            "num_res_blocks": [2, 2, 2],
            "channel_mult": [1, 2, 4],
            "transformer_depth": [0, 0, 2, 2, 10, 10],
            "transformer_depth_middle": 10,
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
            "use_spatial_transformer": True,
            "use_linear_in_transformer": True,
            "use_temporal_attention": False,
            "use_temporal_resblock": False,
            "legacy": False,
            **settings["unet"],
        }
    )
    config.set_inference_dtype(getattr(torch, settings["dtype"]), None)
    model = config.get_model({}, "", comfy.model_management.unet_offload_device())
    generator = torch.Generator().manual_seed(0)
    for parameter in model.diffusion_model.parameters():  # the host leaves them uninitialised
        parameter.data.uniform_(-0.02, 0.02, generator=generator)
    return comfy.model_patcher.ModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def seconds(function: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """Result and wall-clock time of a call, after all work of the device."""
    import torch

    started = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - started


def measure(
    host: types.ModuleType,
    model: Any,  # noqa: ANN401 (the host's MODEL)
    work: Path,
    settings: dict[str, Any],
) -> dict[str, list[float]]:
    """Seconds of applying (build the patches, patch the weights) and of steps with and without a LoRA."""
    import comfy.model_management
    import comfy.sd
    import comfy.utils
    import torch

    lora = comfy.utils.load_torch_file(str(work / "lora.safetensors"), safe_load=True)
    device, dtype = model.load_device, getattr(torch, settings["dtype"])
    unet, side = model.model.diffusion_model, settings["latent_side"]
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    noisy = random(1, 4, side, side)
    context, adm = random(1, 77, unet_width(settings)), random(1, settings["unet"]["adm_in_channels"])
    t = torch.tensor([500.0], device=device)
    ways = {
        "ours": lambda: host.apply_lora(model, lora, 1.0),
        "core": lambda: comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0],
    }
    times: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        times.setdefault(name, []).append(value)

    def load(patcher: Any) -> None:  # noqa: ANN401
        comfy.model_management.load_models_gpu([patcher], force_full_load=True)

    def steps(name: str) -> None:
        for _ in range(settings["steps"]):
            note(name, seconds(lambda: unet(noisy, t, context=context, y=adm), device)[1])

    load(model)
    seconds(lambda: unet(noisy, t, context=context, y=adm), device)  # warm-up
    changed = unet.state_dict()[settings["probe"]].clone()
    for round_number in range(settings["rounds"]):
        for way in sorted(ways, reverse=bool(round_number % 2)):
            comfy.model_management.unload_all_models()
            load(model)
            steps("step.plain")
            comfy.model_management.unload_all_models()
            patched, build = seconds(ways[way], device)
            _, patch = seconds(lambda patched=patched: load(patched), device)
            if torch.equal(unet.state_dict()[settings["probe"]].to(changed), changed):
                raise RuntimeError(f"{way}: the weights were not patched")
            note(f"apply.{way}.build", build)
            note(f"apply.{way}.patch", patch)
            note(f"apply.{way}", build + patch)
            steps("step.merged")
            del patched
    return times


def unet_width(settings: dict[str, Any]) -> int:
    """Width of the text features."""
    return settings["unet"]["context_dim"]


def main(comfyui: str, work: str) -> None:
    """Build, measure, write."""
    logging.disable(logging.INFO)
    folder = Path(work)
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    host = import_host(comfyui, settings["device"])
    import torch

    torch.set_num_threads(settings["threads"])
    with torch.inference_mode():
        times = measure(host, build_model(settings), folder, settings)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    report = {"seconds": times, "peak_process_bytes": peak}
    (folder / "host.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

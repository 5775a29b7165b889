"""Runs inside ComfyUI's Python: reads LoRA files with ComfyUI's own key map and says what came of it.

Usage: ``python in_host_loras.py COMFYUI WORK``. WORK holds ``<model>.json`` (diffusers weight name -> shape,
from which ComfyUI recognises the model), ``<model>.<anything>.safetensors`` and ``targets.json`` (model ->
weights whose patched values are wanted). Writes ``report.json`` and ``patched.safetensors``, keys
``<file>:<weight>``.
The models have their full size but lie on the meta device: no weights.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

STRENGTH = 0.7
WEIGHT = 0.25  # every element of a weight before it is patched


class Complaints(logging.Handler):
    """Keeps the warnings and errors that ComfyUI logs instead of raising."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


def build(shapes):
    """ComfyUI's model for a U-Net, as it loads one in diffusers layout, on the meta device."""
    import comfy.model_detection
    import torch

    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    config = comfy.model_detection.unet_config_from_diffusers_unet(weights, torch.float32)
    settings = comfy.model_detection.model_config_from_unet_config(config)
    settings.set_inference_dtype(torch.float32, None)
    return settings.get_model({}, "", device=torch.device("meta"))


def read(path, model, targets, complaints):
    """Report of one file, and the patched weights."""
    import comfy.lora
    import comfy.utils
    import torch

    complaints.messages.clear()
    tensors = comfy.utils.load_torch_file(str(path))
    patches = comfy.lora.load_lora(tensors, comfy.lora.model_lora_keys_unet(model, {}))
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    misshapen = []
    for name, adapter in patches.items():
        up, down = adapter.weights[:2]
        flat = (shapes[name][0], torch.Size(shapes[name][1:]).numel())  # (out, in); 1x1 convolutions too
        if (up.shape[0], down.shape[1]) != flat or up.shape[1] != down.shape[0]:
            misshapen.append(name)
    patched = {}
    for name in targets:
        weight = torch.full(shapes[name], WEIGHT)
        patch = (STRENGTH, patches[name], 1.0, None, None)
        patched[name] = comfy.lora.calculate_weight([patch], weight, name)
    report = {"modules": len(patches), "misshapen": misshapen, "complaints": list(complaints.messages)}
    return report, patched


def main(comfyui, work):
    sys.path.insert(0, comfyui)
    from comfy.cli_args import args

    args.cpu = True
    import comfy.model_base  # noqa: F401  (logs on import: before listening)
    from safetensors.torch import save_file

    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    work = Path(work)
    wanted = json.loads((work / "targets.json").read_text())
    reports, outputs = {}, {}
    for name, targets in wanted.items():
        model = build(json.loads((work / f"{name}.json").read_text()))
        for path in sorted(work.glob(f"{name}.*.safetensors")):
            report, patched = read(path, model, targets, complaints)
            reports[path.name] = {**report, "model": type(model).__name__}
            outputs |= {f"{path.name}:{target}": weight for target, weight in patched.items()}
    (work / "report.json").write_text(json.dumps(reports))
    save_file(outputs, work / "patched.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])

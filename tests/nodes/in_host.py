"""Runs inside ComfyUI's Python: loads a pipeline folder as host models and writes down what they compute.

Usage: ``python in_host.py COMFYUI FOLDER WORK``: reads ``inputs.safetensors`` (prompts: in its metadata) and,
if it is there, the checkpoint ``difflora.safetensors`` in WORK; writes ``outputs.safetensors`` there.
"""

from __future__ import annotations

import json
import logging
import sys
import types
from importlib import import_module
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]


def import_host(comfyui: str) -> types.ModuleType:
    """The pack's ``nodes._host``, as a package with a name of its own, on the CPU."""
    sys.path.insert(0, comfyui)
    from comfy.cli_args import args

    args.cpu = True
    for name, path in (
        ("pack", PACK),
        ("pack.nodes", PACK / "nodes"),
    ):  # only _host, without the nodes' own imports
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(path)]
    return import_module("pack.nodes._host")


def generate_and_apply(host, checkpoint, model, inputs):
    """Generates a LoRA under the host's model management; runs the U-Net with it and then without."""
    import comfy.model_management

    library = import_module("pack.difflora.model")
    features = import_module("pack.difflora.features").IdentityFeatures(inputs["face"], inputs["image"])
    managed = host.manage(library.DiffLoRA.load(checkpoint))
    lora = managed.on_device().generate(features, seed=3, progress=host.progress()).state_dict()

    def unet(patcher):
        comfy.model_management.load_models_gpu([patcher])
        return patcher.model.diffusion_model(
            inputs["noisy"], inputs["timesteps"].float(), context=inputs["context"]
        )

    patched = unet(host.apply_lora(model, lora, 1.5))
    return {f"lora.{key}": value for key, value in lora.items()} | {
        "patched": patched,
        "unpatched": unet(model),
    }


def main(comfyui: str, folder: str, work: str) -> None:
    """Host counterparts of what the test computed with diffusers and transformers."""
    logging.disable(logging.INFO)
    host = import_host(comfyui)
    import comfy.sample
    import comfy.samplers
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(Path(work) / "inputs.safetensors", "pt") as file:
        inputs = {key: file.get_tensor(key) for key in file.keys()}
        prompts = json.loads(file.metadata()["prompts"])
    outputs = {}
    with torch.inference_mode():
        model, clip, vae = (
            load(Path(folder)) for load in (host.load_unet, host.load_text_encoder, host.load_vae)
        )
        conditions = [clip.encode_from_tokens(clip.tokenize(prompt)) for prompt in prompts]
        outputs["prompt_embeds"] = torch.cat(conditions)
        unet = model.model.diffusion_model
        outputs["unet"] = unet(inputs["noisy"], inputs["timesteps"].float(), context=inputs["context"])
        outputs["alphas_cumprod"] = 1 / (1 + model.model.model_sampling.sigmas**2)
        outputs["decoded"] = vae.decode(inputs["image_latents"])
        outputs["encoded"] = vae.encode(inputs["pictures"])
        positive = [[inputs["context"][:1], {}]]
        num_steps = len(inputs["sigmas"]) - 1
        for sampler in ("ddim", "euler"):
            outputs[sampler] = comfy.sample.sample(
                model,
                inputs["noise"],
                num_steps,
                1.0,
                sampler,
                "simple",
                positive,
                positive,
                torch.zeros_like(inputs["noise"]),
                sigmas=inputs["sigmas"],
                disable_pbar=True,
                seed=0,
            )
        sampling = model.get_model_object("model_sampling")
        if (checkpoint := Path(work) / "difflora.safetensors").is_file():
            outputs |= generate_and_apply(host, checkpoint, model, inputs)
        outputs["simple_sigmas"] = comfy.samplers.calculate_sigmas(sampling, "simple", num_steps)
    outputs = {key: tensor.float().contiguous().clone() for key, tensor in outputs.items()}
    save_file(outputs, Path(work) / "outputs.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])

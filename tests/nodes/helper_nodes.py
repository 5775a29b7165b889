"""Nodes only for these tests: pictures and LoRAs that nobody should send, and a way to read outputs."""

import copy
import json
import tempfile
from pathlib import Path

import comfy.clip_vision
import comfy.model_patcher
import comfy.utils
import torch


class Picture:
    """One bad picture by name."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "make", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"kind": ("STRING", {})}, "optional": {"image": ("IMAGE",)}}

    def make(self, kind, image=None):
        grey = torch.full((1, 64, 64, 3), 0.5)
        return (
            {
                "blank": lambda: grey,
                "1x1": lambda: grey[:, :1, :1],
                "nan": lambda: grey * float("nan"),
                "rgba": lambda: torch.cat([image, torch.ones_like(image[..., :1])], dim=-1),
                "grey": lambda: image.mean(dim=-1, keepdim=True),
                "two_people": lambda: torch.cat([image[:1], image[1:]], dim=2),
            }[kind](),
        )


PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class OtherModel:
    """A MODEL that is not as the pack loads it: a distant fine-tune, another family, or half precision."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "make", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"kind": ("STRING", {}), "model": ("MODEL",)}}

    def make(self, kind, model):
        comfy.model_management.unload_all_models()  # a LoRA of the last run is still in the weights
        network = copy.copy(model.model)  # not deeply: newer hosts keep things in it that cannot be copied
        network._modules = dict(network._modules)
        network.diffusion_model = copy.deepcopy(model.model.diffusion_model)
        torch.manual_seed(0)
        for module in network.diffusion_model.modules():
            if isinstance(module, torch.nn.Linear):
                weight = module.weight.detach()
                changed = {
                    "fine-tune": lambda weight=weight: weight + 0.3 * weight.std() * torch.randn_like(weight),
                    "family": lambda weight=weight: torch.cat([weight, weight]),
                }.get(kind, lambda weight=weight: weight)()
                module.weight = torch.nn.Parameter(changed, requires_grad=False)
        if kind in PRECISIONS:  # as core loads a checkpoint when ComfyUI is started with --bf16-unet
            network.diffusion_model.to(PRECISIONS[kind]).dtype = PRECISIONS[kind]
        return (comfy.model_patcher.ModelPatcher(network, model.load_device, model.offload_device),)


ENCODER_LAYER = "lora_te_text_model_encoder_layers_0_mlp_fc1"
ENCODER = {  # of the synthetic world's text encoder
    f"{ENCODER_LAYER}.lora_up.weight": torch.linspace(-1, 1, 384)[:, None],
    f"{ENCODER_LAYER}.lora_down.weight": torch.linspace(-1, 1, 96)[None],
    f"{ENCODER_LAYER}.alpha": torch.tensor(1.0),
}


class LoraOf:
    """A LoRA that is wrong in one way, made from a good one."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "make", ("LORA_MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"kind": ("STRING", {}), "lora": ("LORA_MODEL",)}}

    def make(self, kind, lora):
        first = sorted(key for key in lora if key.endswith("lora_up.weight"))[0]
        return (
            {
                "renamed": lambda: {
                    f"lora_unet_other_{key.removeprefix('lora_unet_')}": lora[key] for key in lora
                },
                "one_shape": lambda: {**lora, first: lora[first][:-1]},
                "half": lambda: {key: lora[key] for key in lora if key != first},
                "text_encoder": lambda: {**lora, **ENCODER},
                "nan": lambda: {**lora, first: lora[first] * float("nan")},
                "empty": dict,
            }[kind](),
        )


class ClipVision:
    """A folder of transformers' CLIP vision model as CLIP_VISION; core loads only the large ones."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "load", ("CLIP_VISION",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"folder": ("STRING", {}), "width": ("INT", {"default": 0})}}

    def load(self, folder, width):
        config = json.loads((Path(folder) / "config.json").read_text())
        settings = json.loads((Path(folder) / "preprocessor_config.json").read_text())
        weights = comfy.utils.load_torch_file(str(Path(folder) / "model.safetensors"))
        if width:  # another encoder
            config["projection_dim"] = width
            weights["visual_projection.weight"] = weights["visual_projection.weight"][:width]
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "config.json"
            normalisation = {key: settings[key] for key in ("image_mean", "image_std")}
            path.write_text(json.dumps({**config, **normalisation}))
            clip_vision = comfy.clip_vision.ClipVisionModel(str(path))
        missing, _ = clip_vision.load_sd(weights)
        if missing:
            raise ValueError(f"weights without a place: {missing}")
        return (clip_vision,)


class ShowText:
    """Sends a STRING or a number back to the client."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "tests", "show", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("*", {"forceInput": True})}}

    def show(self, text):
        return {"ui": {"text": [str(text)]}}


NODE_CLASS_MAPPINGS = {
    "TestPicture": Picture,
    "TestLora": LoraOf,
    "TestOtherModel": OtherModel,
    "TestShowText": ShowText,
    "TestClipVision": ClipVision,
}

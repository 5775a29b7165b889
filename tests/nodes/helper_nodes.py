"""Nodes only for these tests: pictures and LoRAs that nobody should send, and a way to read outputs."""

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
                "nan": lambda: {**lora, first: lora[first] * float("nan")},
                "empty": dict,
            }[kind](),
        )


class ShowText:
    """Sends a STRING or a number back to the client."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "tests", "show", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("*", {"forceInput": True})}}

    def show(self, text):
        return {"ui": {"text": [str(text)]}}


NODE_CLASS_MAPPINGS = {"TestPicture": Picture, "TestLora": LoraOf, "TestShowText": ShowText}

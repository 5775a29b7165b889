"""Small prompts in the synthetic world, in the form that POST /prompt takes, for the tests of single nodes.

Every function returns a new prompt; nodes have names instead of numbers.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

PROMPT = "a photo of a person, smiling, facing forward, soft light, blue background, red shirt"


def plain(seed: int = 1, width: int = 64, count: int = 1) -> dict:
    """A picture by the base model alone; "world", "sampler" and "save" are its ends."""
    world, sampled = ["world", 0], {"seed": seed, "steps": 8, "cfg": 1.0, "denoise": 1.0}
    sampled |= {"sampler_name": "euler", "scheduler": "simple", "model": world, "latent_image": ["latent", 0]}
    sampled |= {"positive": ["positive", 0], "negative": ["negative", 0]}
    return {
        "world": node("DiffLoRALoadSyntheticWorld"),
        "positive": node("CLIPTextEncode", clip=["world", 1], text=PROMPT),
        "negative": node("CLIPTextEncode", clip=["world", 1], text=""),
        "latent": node("EmptyLatentImage", width=width, height=64, batch_size=count),
        "sampler": node("KSampler", **sampled),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["world", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="test"),
    }


def person(number: int = 0, name: str = "") -> dict:
    """A LoRA of a person, out of the node "lora" + name."""
    features = {"difflora": ["difflora", 0], "photos": [f"photos{name}", 0]}
    settings = {"seed": 0, "steps": 0, "guidance": 0.0, "variation": -1.0}
    return {
        "difflora": node("DiffLoRALoadModel", checkpoint="synthetic world (built in)"),
        f"photos{name}": node("DiffLoRASyntheticPhotos", person=number, count=4, scene_seed=5),
        f"features{name}": node("DiffLoRAEncodePhotos", **features),
        f"lora{name}": node(
            "DiffLoRAGenerate", difflora=["difflora", 0], features=[f"features{name}", 0], **settings
        ),
    }


def applied(strength: float = 1.0, seed: int = 1, **inputs: object) -> dict:
    """A picture with person 0's LoRA through Apply DiffLoRA, which gets the inputs."""
    graph = {**plain(seed), **person()}
    applied = {"model": ["world", 0], "lora": ["lora", 0], "strength": strength, **inputs}
    graph["apply"] = node("DiffLoRAApply", **applied)
    graph["sampler"]["inputs"]["model"] = ["apply", 0]
    return graph


def node(class_type: str, **inputs: object) -> dict:
    """One node."""
    return {"class_type": class_type, "inputs": inputs}


def text_of(server, graph: dict, source: str, output: int = 0) -> str:
    """A STRING that a node puts out."""
    graph = {**graph, "text": node("TestShowText", text=[source, output])}
    return server.run(graph).outputs["text"]["text"][0]


def pictures(server, graph: dict, kept: list[str] | None = None) -> np.ndarray:
    """What "save" saves, (n, H, W, 3) in 0..255; names of nodes that came from the cache go to `kept`."""
    result = server.run(graph)
    if kept is not None:
        kept.extend(result.cached)
    return np.stack([np.asarray(Image.open(path)).astype(int) for path in server.files(result, "save")])

"""Entry point of the ComfyUI node pack; outside ComfyUI this file does nothing."""

import importlib.util

WEB_DIRECTORY = "./web"

if __package__ and importlib.util.find_spec("comfy"):
    from .nodes import comfy_entrypoint  # noqa: F401  (ComfyUI looks it up by name)

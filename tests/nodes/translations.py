"""Names and tooltips of the nodes in ComfyUI's format for translations, ``locales/<language>/nodeDefs.json``.

The English file repeats the definitions of the nodes, so a program writes it:
``python tests/nodes/translations.py``. The Chinese file is
written by hand; ``test_locales.py`` says what it lacks.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

LOCALES = Path(__file__).resolve().parents[2] / "locales"
CATEGORY = "DiffLoRA"
CONTROL = "control_after_generate"
"""The web page puts this widget beside a seed."""


def locale_file(language: str) -> Path:
    """Where ComfyUI looks for a language."""
    return LOCALES / language / "nodeDefs.json"


def translatable(object_info: dict[str, Any]) -> dict[str, Any]:
    """Every text of our nodes that the web page shows.

    Args:
        object_info: the host's answer to GET /object_info.

    Returns:
        node id -> display name, description, inputs by name, outputs by number.
    """
    ours = {key: info for key, info in sorted(object_info.items()) if info["category"] == CATEGORY}
    return {node_id: _node(info) for node_id, info in ours.items()}


def _node(info: dict[str, Any]) -> dict[str, Any]:
    inputs: dict[str, dict[str, str]] = {}
    for group in ("required", "optional"):
        for name, (_, options) in info["input"].get(group, {}).items():
            inputs[name] = {"name": name, "tooltip": options["tooltip"]}
            if options.get(CONTROL, name == "seed"):
                inputs[CONTROL] = {"name": CONTROL.replace("_", " ")}
    outputs = zip(info["output_name"], info["output_tooltips"], strict=True)
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": inputs,
        "outputs": {str(i): {"name": name, "tooltip": tip} for i, (name, tip) in enumerate(outputs)},
    }


def as_text(nodes: dict[str, Any]) -> str:
    """As the file holds it."""
    return json.dumps(nodes, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Writes the English file from the nodes of a ComfyUI of its own."""
    from conftest import prepare_base_directory
    from host_server import Server, find_comfyui

    with tempfile.TemporaryDirectory() as folder:
        prepare_base_directory(Path(folder))
        with Server.start(find_comfyui(), Path(folder)) as server:
            nodes = translatable(server.get("/object_info"))
    locale_file("en").parent.mkdir(parents=True, exist_ok=True)
    locale_file("en").write_text(as_text(nodes), encoding="utf-8")


if __name__ == "__main__":
    main()

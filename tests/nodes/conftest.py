"""Finds a real ComfyUI for these tests ($COMFYUI_PATH, else ~/comfy/ComfyUI); without one they skip."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
from host_server import EXTRA_MODEL_PATHS, ComfyUI, NoComfyUI, Server, find_comfyui

PACK = Path(__file__).resolve().parents[2]
FACE_PACK = PACK / "difflora" / "synthetic" / "weights" / "face_pack" / "models" / "synthetic"


def prepare_base_directory(base: Path) -> None:
    """The pack, the helper nodes and two unusable checkpoints, where ComfyUI looks for them."""
    for name in ("custom_nodes", "user/default", "models/difflora", "input", "output"):
        (base / name).mkdir(parents=True)
    (base / "custom_nodes" / "ComfyUI-DiffLoRA").symlink_to(PACK)
    shutil.copy(Path(__file__).parent / "helper_nodes.py", base / "custom_nodes")
    settings = base / "user" / "default" / "comfy.settings.json"  # else the web page opens its tutorial
    hidden = dict.fromkeys(
        ("Comfy.Minimap.Visible", "Comfy.Graph.CanvasMenu", "Comfy.Graph.CanvasInfo"), False
    )
    settings.write_text(json.dumps({"Comfy.TutorialCompleted": True, **hidden}))
    # folders of another program, which the user tells the host about
    (base / EXTRA_MODEL_PATHS).write_text(
        f"elsewhere:\n  base_path: {base}/elsewhere\n  insightface: faces\n  upscale_models: models/upscale\n"
        f"more:\n  base_path: {base}\n  loras: more_loras\n"
    )
    for folder in ("faces/models/nested_pack/nested_pack", "models/insightface/models/pack_beside"):
        if FACE_PACK.is_dir():
            shutil.copytree(FACE_PACK, base / "elsewhere" / folder)
    foreign = base / "models" / "difflora" / "foreign.safetensors"
    save_file({"model.weight": torch.zeros(4, 4)}, foreign)
    (base / "models" / "difflora" / "truncated.safetensors").write_bytes(foreign.read_bytes()[:-40])


def no_comfyui() -> str | None:
    """Why the host's tests cannot run, or None."""
    try:
        find_comfyui()
    except NoComfyUI as reason:
        return f"the tests in ComfyUI did not run: {reason}"
    return None


@pytest.fixture(scope="session")
def comfyui() -> ComfyUI:
    """The host; tests that need it are deselected where there is none."""
    return find_comfyui()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the host's tests out where there is no host: one line in the summary instead of one per test."""
    if no_comfyui():
        host = [item for item in items if item.get_closest_marker("host")]
        config.hook.pytest_deselected(items=host)
        items[:] = [item for item in items if not item.get_closest_marker("host")]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The visible line, so that a run without the host is not mistaken for a full one."""
    if reason := no_comfyui():
        terminalreporter.write_line(reason, yellow=True)


@pytest.fixture(scope="session")
def server(comfyui: ComfyUI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running ComfyUI with nothing installed but this pack and the helper nodes of these tests."""
    base = tmp_path_factory.mktemp("comfyui")
    prepare_base_directory(base)
    with Server.start(comfyui, base) as running:
        yield running

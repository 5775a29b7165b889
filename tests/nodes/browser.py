"""Drags a workflow into ComfyUI's web page, presses Run, waits for the pictures and takes a screenshot.

As a program, it makes a picture: ``python tests/nodes/browser.py docs/images/workflow-synthetic.png``;
a second argument names another workflow than ``workflows/synthetic.json``. Without arguments it makes that
picture, and ``docs/images/workflow-<name>.png`` of every workflow of the synthetic world.
Needs ``pip install playwright`` and a Chromium ($CHROMIUM, else the one on the path).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
WORKFLOWS, IMAGES = REPOSITORY / "workflows", REPOSITORY / "docs" / "images"
WORKFLOW = WORKFLOWS / "synthetic.json"
NEEDS_FILES = "sdxl_"
"""Workflows whose names start like this need model files that nobody has in a test."""
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SHOW_PICTURES = ("PreviewImage", "SaveImage")
DROP = """([name, text]) => {
    const data = new DataTransfer();
    data.items.add(new File([text], name, {type: 'application/json'}));
    const canvas = document.querySelector('#graph-canvas');
    const box = canvas.getBoundingClientRect();
    canvas.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true,
                                                clientX: box.x + 600, clientY: box.y + 400}));
}"""
FIT = """([left, top, right, bottom]) => {
    const canvas = window.app.canvas, nodes = window.app.graph._nodes;
    const x0 = Math.min(...nodes.map(node => node.pos[0]));
    const y0 = Math.min(...nodes.map(node => node.pos[1])) - 50;
    const x1 = Math.max(...nodes.map(node => node.pos[0] + node.size[0]));
    const y1 = Math.max(...nodes.map(node => node.pos[1] + node.size[1]));
    const scale = Math.min((right - left) / (x1 - x0), (bottom - top) / (y1 - y0));
    const page = canvas.canvas.getBoundingClientRect();
    canvas.ds.scale = scale;
    canvas.ds.offset = [((left + right) / 2 - page.x) / scale - (x0 + x1) / 2,
                        ((top + bottom) / 2 - page.y) / scale - (y0 + y1) / 2];
    canvas.setDirty(true, true);
}"""
"""All nodes with their titles as large as they fit; the page's own command leaves a quarter empty."""
FREE = (72, 85, 1908, 1066)
"""Pixels of the page that no bar covers: left, top, right, bottom."""
COMMON_COLOURS, COLOUR_BIN = 64, 4
"""The page's own colours; steps of brightness that nobody tells apart."""
MESSAGES = ".p-dialog, .p-toast-message-error, .p-toast-message-warn"
PICTURES_LOADED = """count => {
    const shown = window.app.graph._nodes.filter(node => node.imgs && node.imgs.length);
    return shown.length >= count && shown.every(node => node.imgs.every(image => image.complete));
}"""


def find_chromium() -> str | None:
    """The browser to drive, if there is one."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def run_in_browser(url: str, screenshot: Path, workflow: Path = WORKFLOW) -> list[str]:
    """Does what a newcomer does, and returns the error texts that the page showed.

    Args:
        url: of a running ComfyUI.
        screenshot: where to write the PNG.
        workflow: the file to drag in.
    """
    from playwright.sync_api import sync_playwright

    text = workflow.read_text(encoding="utf-8")
    picture_nodes = sum(node["type"] in SHOW_PICTURES for node in json.loads(text)["nodes"])

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1920, "height": 1080})
        page.goto(url)
        page.wait_for_function(
            "() => !!(window.LiteGraph && LiteGraph.registered_node_types['DiffLoRAApply'])", timeout=60_000
        )
        page.wait_for_function("() => !!(window.app && window.app.graph)")
        page.evaluate(DROP, [workflow.name, text])
        page.wait_for_function("() => window.app.graph._nodes.some(node => node.type.startsWith('DiffLoRA'))")
        page.wait_for_timeout(500)
        page.evaluate(FIT, list(FREE))
        page.wait_for_timeout(500)
        buttons = page.locator("[data-testid=queue-button], .queue-button-group button")
        buttons.filter(has_text="Run").first.click()  # its neighbours count up and down
        page.wait_for_function(PICTURES_LOADED, arg=picture_nodes, timeout=120_000)
        page.wait_for_timeout(1000)
        errors = page.locator(MESSAGES).all_inner_texts()
        page.screenshot(path=str(screenshot))
        browser.close()
    return errors


def synthetic_workflows() -> list[Path]:
    """Those that run with nothing but this pack."""
    return sorted(path for path in WORKFLOWS.glob("*.json") if not path.name.startswith(NEEDS_FILES))


def all_pictures() -> dict[Path, Path]:
    """Where a picture goes -> its workflow."""
    return {IMAGES / f"workflow-{path.stem}.png": path for path in synthetic_workflows()}


def reduce_colours(picture: Path) -> None:
    """256 colours, half of the bytes: the commonest as they are, so that flat areas stay flat, and others."""
    with Image.open(picture) as image:
        screen = image.convert("RGB")
    colours, counts = np.unique(np.asarray(screen).reshape(-1, 3), axis=0, return_counts=True)
    common = colours[np.argsort(-counts)[:COMMON_COLOURS]]  # (COMMON_COLOURS, 3)
    spread = np.unique(colours // COLOUR_BIN, axis=0) * COLOUR_BIN + COLOUR_BIN // 2  # each counts once
    left = 256 - len(common)
    others = Image.fromarray(spread[None].astype(np.uint8)).quantize(left, Image.Quantize.MEDIANCUT, kmeans=1)
    palette = Image.new("P", (1, 1))
    palette.putpalette(common.astype(np.uint8).tobytes() + bytes(others.getpalette()[: 3 * left]))
    screen.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(picture, optimize=True)


def main(screenshot: str = "", workflow: str = str(WORKFLOW)) -> None:
    """Starts a ComfyUI of its own for one screenshot, or for all of them."""
    from conftest import prepare_base_directory
    from host_server import Server, find_comfyui

    if find_chromium() is None:
        raise SystemExit("needs Chromium ($CHROMIUM)")
    wanted = {Path(screenshot): Path(workflow)} if screenshot else all_pictures()
    with tempfile.TemporaryDirectory() as folder:
        prepare_base_directory(Path(folder))
        with Server.start(find_comfyui(), Path(folder)) as server:
            for picture, path in wanted.items():
                errors = run_in_browser(server.url, picture, path)
                if errors:
                    raise SystemExit(f"{path.name}: the page showed: " + " | ".join(errors))
                reduce_colours(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])

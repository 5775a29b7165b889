"""Drags a workflow into ComfyUI's web page, presses Run, waits for the pictures and takes a screenshot.

As a program, it makes the picture of the README: ``python tests/nodes/browser.py docs/images/comfyui.png``;
a second argument names another workflow than ``workflows/synthetic.json``.
Needs ``pip install playwright`` and a Chromium ($CHROMIUM, else the one on the path).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
WORKFLOW = REPOSITORY / "workflows" / "synthetic.json"
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
        page.evaluate("() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        page.wait_for_timeout(500)
        page.get_by_test_id("queue-button").or_(
            page.locator("[data-testid=queue-button], .queue-button-group button")
        ).first.click()
        page.wait_for_function(PICTURES_LOADED, arg=picture_nodes, timeout=120_000)
        page.wait_for_timeout(1000)
        errors = page.locator(".p-dialog, .p-toast-message-error").all_inner_texts()
        page.screenshot(path=str(screenshot))
        browser.close()
    return errors


def main(screenshot: str, workflow: str = str(WORKFLOW)) -> None:
    """Starts a ComfyUI of its own for one screenshot."""
    from conftest import prepare_base_directory
    from host_server import Server, find_comfyui

    if find_chromium() is None:
        raise SystemExit("needs Chromium ($CHROMIUM)")
    with tempfile.TemporaryDirectory() as folder:
        prepare_base_directory(Path(folder))
        with Server.start(find_comfyui(), Path(folder)) as server:
            errors = run_in_browser(server.url, Path(screenshot), Path(workflow))
    if errors:
        raise SystemExit("the page showed: " + " | ".join(errors))


if __name__ == "__main__":
    main(*sys.argv[1:])

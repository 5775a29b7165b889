"""A real ComfyUI in a subprocess, driven over HTTP as any client would."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_SECONDS = 300
RUN_SECONDS = 300
EXTRA_MODEL_PATHS = "extra_model_paths.yaml"
PACKAGES = (
    "torch",
    "aiohttp",
    "comfyui_frontend_package",
    "torchsde",
    "transformers",
    "insightface",
    "onnxruntime",
)


@dataclass(frozen=True)
class ComfyUI:
    """A ComfyUI checkout and the Python that can run it."""

    root: Path
    python: str

    @property
    def environment(self) -> dict[str, str]:
        """One thread: several times faster for tiny models, and the same sums on every machine."""
        return {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def run_script(self, script: Path, *arguments: Path) -> None:
        """Run a script of ours in ComfyUI's Python; its first argument is the checkout."""
        run = subprocess.run(
            [self.python, script, self.root, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert run.returncode == 0, run.stderr[-3000:]


class NoComfyUI(Exception):
    """There is no ComfyUI to test in; the text says why."""


@functools.cache
def find_comfyui() -> ComfyUI:
    """The checkout and its interpreter ($COMFYUI_PYTHON, else its own environment, else this one).

    Raises:
        NoComfyUI: if there is none, or its Python lacks a package of ComfyUI's or of this pack's.
    """
    root = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    if not (root / "main.py").is_file():
        raise NoComfyUI(f"no ComfyUI at {root} (set COMFYUI_PATH)")
    candidates = (root / folder / "bin" / "python" for folder in (".venv", "venv"))
    own = next((str(path) for path in candidates if path.exists()), sys.executable)
    comfyui = ComfyUI(root, os.environ.get("COMFYUI_PYTHON") or own)
    code = f"import importlib.util as u; print(*[n for n in {PACKAGES} if not u.find_spec(n)])"
    missing = subprocess.run(
        [comfyui.python, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    if missing:
        raise NoComfyUI(
            f"{comfyui.python} lacks {missing}: install the requirements.txt of ComfyUI and of this pack, "
            "or set COMFYUI_PYTHON"
        )
    return comfyui


class ExecutionFailed(Exception):
    """A prompt was refused or a node raised; the text is what the user sees."""


class Interrupted(Exception):
    """The user pressed Cancel; the text is the class of the node that was running."""


@dataclass(frozen=True)
class Result:
    """What a prompt left behind: outputs per node, and the nodes that were taken from the cache."""

    outputs: dict[str, Any]
    cached: frozenset[str]


@dataclass(frozen=True)
class Server:
    """A running ComfyUI."""

    url: str
    base: Path

    @classmethod
    @contextlib.contextmanager
    def start(cls, comfyui: ComfyUI, base: Path, flags: Sequence[str] = ()) -> Iterator[Server]:
        """Starts the server on a free port, waits until it answers, and stops it in the end."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        log = base / "server.log"
        command = [
            comfyui.python,
            comfyui.root / "main.py",
            "--cpu",
            "--port",
            str(port),
            "--disable-api-nodes",
            "--base-directory",
            base,
            "--database-url",
            f"sqlite:///{base}/user/x.db",
            *flags,
        ]
        if (base / EXTRA_MODEL_PATHS).is_file():
            command += ["--extra-model-paths-config", base / EXTRA_MODEL_PATHS]
        with log.open("w") as out:
            process = subprocess.Popen(
                command, cwd=comfyui.root, env=comfyui.environment, stdout=out, stderr=out
            )
        server = cls(f"http://127.0.0.1:{port}", base)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not server._answers():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"ComfyUI did not start:\n{log.read_text()[-4000:]}")
                time.sleep(0.3)
            yield server
        finally:
            process.terminate()
            process.wait(20)

    def _answers(self) -> bool:
        try:
            self.get("/system_stats")
        except (urllib.error.URLError, ConnectionError):
            return False
        return True

    def get_text(self, path: str) -> str:
        """Body of a GET request."""
        with urllib.request.urlopen(self.url + path, timeout=60) as response:
            return response.read().decode()

    def get(self, path: str) -> Any:
        """JSON of a GET request."""
        return json.loads(self.get_text(path))

    def interrupt(self) -> None:
        """Presses Cancel."""
        urllib.request.urlopen(urllib.request.Request(self.url + "/interrupt", b"{}"), timeout=30).close()

    def run(self, prompt: dict[str, Any]) -> Result:
        """Queues a prompt and waits for it.

        Raises:
            ExecutionFailed: with the host's message, if the prompt is invalid or a node raises.
        """
        request = urllib.request.Request(
            self.url + "/prompt",
            json.dumps({"prompt": prompt}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                prompt_id = json.loads(response.read())["prompt_id"]
        except urllib.error.HTTPError as error:
            raise ExecutionFailed(error.read().decode()) from error
        deadline = time.monotonic() + RUN_SECONDS
        while prompt_id not in (history := self.get(f"/history/{prompt_id}")):
            if time.monotonic() > deadline:
                raise TimeoutError(f"ComfyUI has not finished after {RUN_SECONDS} s")
            time.sleep(0.05)
        messages = dict(history[prompt_id]["status"]["messages"])
        if "execution_interrupted" in messages:
            raise Interrupted(messages["execution_interrupted"]["node_type"])
        if "execution_error" in messages:
            raise ExecutionFailed(messages["execution_error"]["exception_message"])
        return Result(history[prompt_id]["outputs"], frozenset(messages["execution_cached"]["nodes"]))

    def files(self, result: Result, node: str, kind: str = "images") -> list[Path]:
        """Where the files of an output node lie."""
        return [
            self.base / item["type"] / item["subfolder"] / item["filename"]
            for item in result.outputs[node][kind]
        ]


def api_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """Turns a saved workflow into the form that POST /prompt takes, as the web page does.

    Args:
        workflow: a file from workflows/.
        object_info: the host's answer to GET /object_info.
    """
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in ("Note", "MarkdownNote"):
            continue
        info = object_info[node["type"]]["input"]
        linked = {
            item["name"]: links[item["link"]]
            for item in node.get("inputs", [])
            if item.get("link") is not None
        }
        values = iter(node.get("widgets_values") or [])
        inputs = {}
        for name, (kind, *options) in {**info.get("required", {}), **info.get("optional", {})}.items():
            is_widget = isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
            if is_widget and not (options and options[0].get("forceInput")):
                # a workflow that was saved before a widget existed has no value for it
                inputs[name] = next(values, options[0].get("default") if options else None)
                seeds = name in ("seed", "noise_seed")  # these have it unless the node says no
                if options and options[0].get("control_after_generate", seeds):
                    next(values)  # the "randomize / fixed" widget beside the number
            if name in linked:
                inputs[name] = linked[name]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt

"""ComfyUI started as users start it, two prompts in its queue; `--cpu` excludes --lowvram and --novram."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import prompts
from conftest import prepare_base_directory
from host_server import ComfyUI, Server

pytestmark = pytest.mark.host
FLAGS = (
    (
        "--force-fp16",
        "--fp16-unet",
        "--fp16-vae",
        "--fp16-text-enc",
        "--disable-smart-memory",
        "--cache-none",
    ),
    ("--bf16-unet", "--bf16-vae", "--bf16-text-enc", "--force-channels-last", "--cache-lru", "3"),
)
ROUNDING = 1.0
"""Grey levels of 255. The built-in models are too small to gain from half precision, so they keep theirs."""


@pytest.fixture(scope="module", params=FLAGS, ids=lambda flags: flags[0])
def flagged(
    request: pytest.FixtureRequest, comfyui: ComfyUI, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("flags")
    prepare_base_directory(base)
    with Server.start(comfyui, base, request.param) as running:
        yield running


def test_two_queued_prompts_draw_the_person_as_without_flags(flagged: Server, server: Server) -> None:
    graphs = [prompts.applied(seed=seed) for seed in (1, 2)]
    with ThreadPoolExecutor(len(graphs)) as pool:
        drawn = list(pool.map(lambda graph: prompts.pictures(flagged, graph), graphs))
    for graph, picture in zip(graphs, drawn, strict=True):
        expected = prompts.pictures(server, graph)
        assert np.abs(picture - expected).mean() < ROUNDING
    somebody = prompts.pictures(server, prompts.plain(seed=1))
    assert np.abs(drawn[0] - somebody).mean() > 4 * ROUNDING

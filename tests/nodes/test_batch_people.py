"""Batch of People in a real ComfyUI: one list for the graph, one file each, resumed after Cancel."""

from __future__ import annotations

import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from difflora.lora import Lora
from difflora.synthetic.photo_folders import save_photo_folders

sys.path.insert(0, str(Path(__file__).parent))
import prompts
from host_server import ExecutionFailed, Interrupted

pytestmark = pytest.mark.host
DEFAULTS = {"lora_folder": "models/loras", "seed": 0, "steps": 0, "guidance": 0.0, "variation": -1.0}


def batch(folder: object, subfolder: str = "batch", **inputs: object) -> dict:
    """Batch of People with its report."""
    given = {"difflora": ["difflora", 0], "folder": folder, "subfolder": subfolder, "sidecar": False}
    return {
        "difflora": prompts.node("DiffLoRALoadModel", checkpoint="synthetic world (built in)"),
        "batch": prompts.node("DiffLoRABatchPeople", **{**given, **DEFAULTS, **inputs}),
    }


@pytest.fixture
def people(server):
    """Three people in the input folder."""
    folder = server.base / "input" / "people"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(server.base / "models" / "loras" / "batch", ignore_errors=True)
    save_photo_folders(folder, num_people=3, num_photos=1)
    return folder


def report(server, graph: dict) -> list[str]:
    return prompts.text_of(server, graph, "batch", 2).splitlines()


def test_made_once_then_up_to_date(server, people):
    assert [line.split(", ")[0] for line in report(server, batch("people"))] == [
        f"person_{number}: made" for number in range(3)
    ]
    files = sorted((server.base / "models" / "loras" / "batch").iterdir())
    assert [file.name for file in files] == [f"person_{number}.safetensors" for number in range(3)]
    listed = server.get("/object_info/LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"][0]
    assert str(Path("batch", files[0].name)) in listed
    (people / "empty").mkdir()
    shutil.copy(people / "person_0" / "photo_0_0.png", people / "person_1" / "more.png")
    lines = report(server, batch("people"))  # the same prompt: not from ComfyUI's cache
    assert [line.split(", ")[0] for line in lines] == [
        "empty: failed",
        "person_0: up to date",
        "person_1: made",
        "person_2: up to date",
    ]


def test_what_follows_runs_once_for_each_person(server):
    folder = {"folder": "synthetic_people", "people": 2, "count": 1, "scene_seed": 3}
    graph = {**prompts.applied(lora=["batch", 0]), **batch(["folder", 0], "synthetic")}
    graph["folder"] = prompts.node("DiffLoRASyntheticPeopleFolder", **folder)
    drawn = prompts.pictures(server, graph)
    assert len(drawn) == 2 and abs(drawn[0] - drawn[1]).mean() > 2
    assert len(list((server.base / "input" / "synthetic_people").rglob("photo_3_0.png"))) == 2


def test_the_strength_for_everybody_is_the_one_that_the_files_recommend(server, people):
    strength = float(prompts.text_of(server, batch("people"), "batch", 3))
    for path in (server.base / "models" / "loras" / "batch").iterdir():
        assert float(Lora.load(path).metadata["difflora.recommended_strength"]) == strength
    assert strength != 1.0  # what Apply DiffLoRA has by itself


def test_cancel_keeps_who_is_done_and_the_next_run_goes_on(server, people):
    report(server, batch("people"))
    shutil.rmtree(server.base / "models" / "loras" / "batch")
    slow = batch("people", steps=200)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.run, slow)
        done = server.base / "models" / "loras" / "batch" / "person_0.safetensors"
        deadline = time.monotonic() + 200
        while not done.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        server.interrupt()
        with pytest.raises(Interrupted, match="DiffLoRABatchPeople"):
            running.result()
    assert [file.name for file in done.parent.iterdir()] == ["person_0.safetensors"]
    assert [line.split(", ")[0] for line in report(server, slow)] == [
        "person_0: up to date",
        "person_1: made",
        "person_2: made",
    ]


@pytest.mark.parametrize(
    ("folder", "subfolder", "words"),
    [
        ("nowhere", "batch", "no folder .*nowhere"),
        ("../output", "batch", r"give a relative path without \.\."),
        ("", "batch", r"give a relative path without \.\."),
        ("people", "../elsewhere", r"give a relative path without \.\."),
        ("people/person_0", "batch", "has no folders in it"),
    ],
)
def test_bad_folders_are_one_clear_error(server, people, folder, subfolder, words):
    with pytest.raises(ExecutionFailed, match=words):
        server.run(batch(folder, subfolder))


def test_nobody_at_all_is_an_error(server, people):
    for photo in people.rglob("*.png"):
        photo.write_bytes(b"broken")
    with pytest.raises(ExecutionFailed, match=r"no LoRA could be made:\nperson_0: failed"):
        server.run(batch("people", "nobody"))

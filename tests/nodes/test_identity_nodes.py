"""The identity nodes in a real ComfyUI: photos, candidates, files, blends, similarity, and bad input."""

from __future__ import annotations

import json
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from host_server import ExecutionFailed, Interrupted

PACK = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(
        not (PACK / "difflora" / "synthetic" / "weights" / "difflora.safetensors").is_file(),
        reason="the trained weights are not in this checkout",
    ),
]
SAMPLING = {"seed": 0, "steps": 0, "guidance": 0.0, "variation": -1.0}


def node(class_type: str, **inputs: object) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def people(count: int = 1) -> dict:
    """Model, world, photos of people 0, 1, ... and their features: nodes a, b, ... of each."""
    prompt = {
        "difflora": node("DiffLoRALoadModel", checkpoint="synthetic world (built in)"),
        "world": node("DiffLoRALoadSyntheticWorld"),
    }
    for person in range(count):
        name = "abcd"[person]
        prompt[f"photos_{name}"] = node("DiffLoRASyntheticPhotos", person=person, count=1, scene_seed=102)
        prompt[f"encode_{name}"] = encode([f"photos_{name}", 0])
        prompt[f"lora_{name}"] = generate([f"encode_{name}", 0])
    return prompt


def encode(photos: list, **inputs: object) -> dict:
    return node("DiffLoRAEncodePhotos", difflora=["difflora", 0], photos=photos, **inputs)


def generate(features: list, **inputs: object) -> dict:
    return node("DiffLoRAGenerate", difflora=["difflora", 0], features=features, **{**SAMPLING, **inputs})


def text(server, prompt: dict, source: list) -> str:
    """A STRING or a number that a node puts out."""
    shown = node("TestShowText", text=source)
    return server.run({**prompt, "shown": shown}).outputs["shown"]["text"][0]


def saved(server, prompt: dict, source: list) -> np.ndarray:
    """The IMAGE that a node puts out, (N, H, W, 3) in 0 .. 255."""
    result = server.run({**prompt, "saved": node("SaveImage", images=source, filename_prefix="identity")})
    return np.stack([np.asarray(Image.open(path)).astype(int) for path in server.files(result, "saved")])


def drawn(prompt: dict, lora: list, strength: float = 1.0, count: int = 1) -> dict:
    """The prompt with pictures drawn with a LoRA: node "picture", MODEL from "apply"."""
    return {
        **prompt,
        "apply": node("DiffLoRAApply", model=["world", 0], lora=lora, strength=strength),
        **picture(["apply", 0], count),
    }


def picture(model: list, count: int = 1) -> dict:
    sampler = {"seed": 3, "steps": 6, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    return {
        "prompt": node("CLIPTextEncode", clip=["world", 1], text="a photo of a person"),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=count),
        "sampler": node(
            "KSampler",
            model=model,
            positive=["prompt", 0],
            negative=["prompt", 0],
            latent_image=["empty", 0],
            denoise=1.0,
            **sampler,
        ),
        "picture": node("VAEDecode", samples=["sampler", 0], vae=["world", 2]),
    }


# Encode Reference Photos


def test_photo_of_another_person_is_left_out(server):
    prompt = people()
    prompt["photos_a"]["inputs"]["count"] = 3
    prompt["photos_b"] = node("DiffLoRASyntheticPhotos", person=1, count=1, scene_seed=5)
    prompt["encode_a"]["inputs"]["photos_2"] = ["photos_b", 0]
    report = text(server, prompt, ["encode_a", 1])
    assert re.search(r"photo 4 of 4: not used, looks like another person: similarity", report)
    assert report.count(": used, one face found") == 3
    assert saved(server, prompt, ["encode_a", 2]).shape == (3, 224, 224, 3)  # crops of the used photos
    assert saved(server, prompt, ["encode_a", 3]).shape[0] == 1
    prompt["encode_a"]["inputs"]["outliers"] = 0.0
    assert "photo 4 of 4: used" in text(server, prompt, ["encode_a", 1])


def two_people(server) -> dict:
    prompt = people(2)
    prompt["both"] = node("ImageStitch", image1=["photos_a", 0], image2=["photos_b", 0], direction="right")
    prompt["both"]["inputs"] |= {"match_image_size": True, "spacing_width": 0, "spacing_color": "white"}
    prompt["encode_both"] = encode(["both", 0])
    return prompt


@pytest.mark.parametrize(
    ("inputs", "person"),
    [
        ({"face": "left to right", "face_index": 0}, "a"),
        ({"face": "left to right", "face_index": 1}, "b"),
        ({"face": "most like the example", "example": ["photos_a", 0]}, "a"),
        ({"face": "most like the example", "example": ["photos_b", 0]}, "b"),
    ],
)
def test_the_face_that_was_asked_for(server, inputs, person):
    prompt = two_people(server)
    prompt["encode_both"]["inputs"] |= inputs
    compared = []
    for name in "ab":
        prompt["likeness"] = node(
            "DiffLoRASimilarity",
            difflora=["difflora", 0],
            features=["encode_both", 0],
            images=[f"photos_{name}", 0],
        )
        compared.append(float(text(server, prompt, ["likeness", 0])))
    assert "ab"[int(np.argmax(compared))] == person and max(compared) > 0.7, compared


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"face_index": 4}, "no face number 4: only 1 found"),
        ({"face": "most like the example"}, "there is no example"),
        ({"face": "most like the example", "example": ["blank", 0]}, "no face found in the example"),
        ({"photos_2": ["blank", 0]}, "no face found in photo 2 of 2"),
    ],
)
def test_photos_that_lack_the_face_are_one_clear_error(server, inputs, words):
    prompt = {**people(), "blank": node("TestPicture", kind="blank")}
    prompt["encode_a"]["inputs"] |= inputs
    with pytest.raises(ExecutionFailed, match=words):
        text(server, prompt, ["encode_a", 1])


def test_a_photo_without_a_face_can_be_skipped(server):
    prompt = {**people(), "blank": node("TestPicture", kind="blank")}
    prompt["encode_a"]["inputs"] |= {"photos_2": ["blank", 0], "without_face": "skip"}
    report = text(server, prompt, ["encode_a", 1])
    assert "photo 2 of 2: not used, no face found" in report and "photo 1 of 2: used" in report


def test_better_photos_count_more(server):
    prompt = people()
    prompt["blurred"] = node("ImageBlur", image=["photos_a", 0], blur_radius=4, sigma=4.0)
    prompt["encode_a"]["inputs"] |= {"photos_2": ["blurred", 0], "photo_weights": "better photos more"}
    weights = [
        float(w) for w in re.findall(r"used with weight ([\d.]+)", text(server, prompt, ["encode_a", 1]))
    ]
    assert len(weights) == 2 and weights[0] > 1 > weights[1] and sum(weights) == pytest.approx(2, abs=0.02)


def cancel(server, prompt: dict, class_type: str) -> None:
    """Runs a prompt, presses Cancel, and checks which node was stopped."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.run, prompt)
        while not server.get("/queue")["queue_running"]:
            time.sleep(0.02)
        time.sleep(0.2)
        server.interrupt()
        with pytest.raises(Interrupted, match=class_type):
            running.result()


def test_cancel_stops_the_search_for_faces(server):
    prompt = people()
    prompt["photos_a"]["inputs"] |= {"count": 16, "scene_seed": 9}
    prompt["many"] = node("RepeatImageBatch", image=["photos_a", 0], amount=16)
    one = node("ImageFromBatch", image=["many", 0], batch_index=0, length=1)
    like = node("DiffLoRASimilarity", difflora=["difflora", 0], features=["of_one", 0], images=["one", 0])
    first = {"one": one, "of_one": encode(["one", 0]), "like": like}
    known = {name: prompt[name] for name in ("difflora", "photos_a", "many")}
    text(server, {**known, **first}, ["like", 0])  # models and photos are in the cache afterwards
    del prompt["lora_a"], prompt["world"]
    again = {f"photos_{number}": ["many", 0] for number in (2, 3, 4)}  # 784 photos: longer than the wait
    prompt["encode_a"]["inputs"] |= again
    cancel(server, {**prompt, "shown": node("TestShowText", text=["encode_a", 1])}, "DiffLoRAEncodePhotos")


# Generate LoRA


def candidates(prompt: dict, count: int, **inputs: object) -> dict:
    parts = {"model": ["world", 0], "clip": ["world", 1], "vae": ["world", 2]}
    prompt["lora_a"]["inputs"] |= {"candidates": count, **parts, **inputs}
    return prompt


def test_the_best_candidate_comes_out(server):
    prompt = candidates(people(), 3, seed=5, preview_pictures=2)
    report = text(server, prompt, ["lora_a", 2])
    ranks = [(float(a), int(b)) for a, b in re.findall(r"likeness ([\d.-]+), seed (\d+)", report)]
    assert sorted(seed for _, seed in ranks) == [5, 6, 7]
    assert [value for value, _ in ranks] == sorted((value for value, _ in ranks), reverse=True)
    best = ranks[0][1]
    assert f"seed: {best}\n" in report and "noise scale: 0.3\n" in report
    sheet = saved(server, prompt, ["lora_a", 4])
    assert sheet.shape[1] > 3 * 150 and sheet.std() > 20
    alone = people()
    alone["lora_a"]["inputs"] |= {"seed": best, "variation": 0.3}
    np.testing.assert_array_equal(
        saved(server, drawn(prompt, ["lora_a", 0]), ["picture", 0]),
        saved(server, drawn(alone, ["lora_a", 0]), ["picture", 0]),
    )


def test_drawing_candidates_leaves_the_model_as_it_was(server):
    prompt = people()
    plain = saved(server, {**prompt, **picture(["world", 0])}, ["picture", 0])
    saved(server, candidates(people(), 2, seed=77, preview_pictures=1), ["lora_a", 4])
    changed = {**prompt, **picture(["world", 0])}
    changed["sampler"]["inputs"]["steps"] = 7  # not from the cache
    assert not np.array_equal(saved(server, changed, ["picture", 0]), plain)
    changed["sampler"]["inputs"]["steps"] = 6
    np.testing.assert_array_equal(saved(server, changed, ["picture", 0]), plain)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [({"model": None}, "connect model, clip and vae"), ({"variation": 0.0}, "all are the same")],
)
def test_candidates_that_cannot_be_ranked(server, inputs, words):
    prompt = candidates(people(), 3, **inputs)
    prompt["lora_a"]["inputs"] = {k: v for k, v in prompt["lora_a"]["inputs"].items() if v is not None}
    with pytest.raises(ExecutionFailed, match=words):
        text(server, prompt, ["lora_a", 2])


def test_one_candidate_says_why_there_is_no_ranking(server):
    assert saved(server, people(), ["lora_a", 4]).shape[0] == 1


def test_cancel_stops_the_ranking(server):
    prompt = candidates(people(), 64, seed=1000, preview_pictures=16, preview_steps=100)
    text(server, prompt, ["encode_a", 1])  # the photos come from the cache afterwards
    cancel(server, {**prompt, "shown": node("TestShowText", text=["lora_a", 2])}, "DiffLoRAGenerate")


def test_changing_only_the_seed_does_not_encode_again(server):
    prompt = {**people(), "shown": node("TestShowText", text=["lora_a", 2])}
    server.run(prompt)
    assert {"encode_a", "lora_a", "difflora"} <= server.run(prompt).cached  # a second run computes nothing
    prompt["lora_a"]["inputs"]["seed"] = 4242
    cached = server.run(prompt).cached
    assert "encode_a" in cached and "lora_a" not in cached


# Save Identity, Load Identity


def saving(prompt: dict, name: str, **inputs: object) -> dict:
    save = {"features": ["encode_a", 0], "name": name, "consent": "agreed on 2026-11-21", **inputs}
    return {**prompt, "save": node("DiffLoRASaveIdentity", **{"if_it_exists": "keep both", **save})}


def loading(name: str) -> dict:
    """Load Identity alone, no photos; the host knows a new file after a refresh."""
    prompt = people(0)
    return {**prompt, "load": node("DiffLoRALoadIdentity", difflora=["difflora", 0], identity=name)}


def test_saved_and_loaded_is_the_same_person_without_photos(server):
    prompt = people()
    prompt["lora_a"]["inputs"] |= {"variation": 1.0, "seed": 9}
    report = text(server, saving(prompt, "anna", latent=["lora_a", 3]), ["save", 0])
    folder = server.base / "models" / "difflora" / "identities"
    assert (
        "features and LoRA latent of 1 photo, no photo in it" in report
        and (folder / "anna.safetensors").is_file()
    )
    loaded = loading("anna.safetensors")
    assert "consent: agreed on 2026-11-21" in text(server, loaded, ["load", 4])
    np.testing.assert_array_equal(
        saved(server, drawn(loaded, ["load", 2]), ["picture", 0]),
        saved(server, drawn(prompt, ["lora_a", 0]), ["picture", 0]),
    )
    names = server.get("/object_info/DiffLoRALoadModel")["DiffLoRALoadModel"]["input"]["required"][
        "checkpoint"
    ]
    assert "anna" not in json.dumps(names)  # an identity is no checkpoint
    text(server, saving(people(), "anna"), ["save", 0])  # somebody else of that name: both stay
    assert {path.name for path in folder.glob("anna*")} == {"anna.safetensors", "anna_2.safetensors"}
    assert "the average LoRA was generated" in text(server, loading("anna_2.safetensors"), ["load", 4])


@pytest.mark.parametrize("name", ["../escaped", "a/b", "C:\\x", "", ".hidden", "con"])
def test_a_name_cannot_leave_the_folder(server, name):
    with pytest.raises(ExecutionFailed, match=r"cannot be the name|keeps for devices"):
        text(server, saving(people(), name), ["save", 0])
    assert not list(server.base.rglob("*escaped*"))


def test_an_existing_name_can_stop(server):
    text(server, saving(people(), "ben"), ["save", 0])
    changed = saving(people(), "ben", if_it_exists="stop with an error", consent="another note")
    with pytest.raises(ExecutionFailed, match="exists"):
        text(server, changed, ["save", 0])


def test_a_file_of_another_kind_is_refused(server):
    folder = server.base / "models" / "difflora"
    text(server, saving(people(), "carl"), ["save", 0])  # makes the folder
    (folder / "identities" / "foreign.safetensors").write_bytes((folder / "foreign.safetensors").read_bytes())
    with pytest.raises(ExecutionFailed, match="is not an identity"):
        text(server, loading("foreign.safetensors"), ["load", 4])


# Blend Identities


def blended(prompt: dict, weights: tuple[float, ...], mode: str = "spherical") -> dict:
    inputs = {f"weight_{i}": w for i, w in enumerate((*weights, 0.0, 0.0)[:4], start=1)}
    inputs |= {"latent_1": ["lora_a", 3], "latent_2": ["lora_b", 3], "mode": mode}
    return {**prompt, "blend": node("DiffLoRABlend", difflora=["difflora", 0], **inputs)}


def test_all_the_weight_on_one_person_is_exactly_that_person(server):
    prompt = people(2)
    for weights, name in (((1.0, 0.0), "a"), ((0.0, 0.7), "b")):
        alone = saved(server, drawn(prompt, [f"lora_{name}", 0]), ["picture", 0])
        mixed = saved(server, drawn(blended(prompt, weights), ["blend", 0]), ["picture", 0])
        np.testing.assert_array_equal(mixed, alone)


def test_a_blend_is_like_both(server):
    def likeness(lora: str) -> list[float]:
        prompt = drawn(blended(people(2), (0.5, 0.5)), [lora, 0], count=4)
        for name in "ab":
            features = {"features": [f"encode_{name}", 0], "images": ["picture", 0]}
            prompt[f"like_{name}"] = node("DiffLoRASimilarity", difflora=["difflora", 0], **features)
        return [float(text(server, prompt, [f"like_{name}", 0])) for name in "ab"]

    mixed, first, second = (likeness(name) for name in ("blend", "lora_a", "lora_b"))
    assert mixed[0] > second[0] + 0.05 and mixed[1] > first[1] + 0.05, (mixed, first, second)
    report = text(server, blended(people(2), (0.5, 0.5)), ["blend", 2])
    assert "blend weights: 0.5 0.5" in report


def test_no_weight_at_all_is_one_clear_error(server):
    with pytest.raises(ExecutionFailed, match="at least one of them above 0"):
        text(server, blended(people(2), (0.0, 0.0)), ["blend", 2])


# Identity Similarity


def test_similarity_of_pictures_and_of_none(server):
    prompt = {**people(2), "blank": node("TestPicture", kind="blank")}
    prompt["shrunk"] = node(
        "ImageScale", image=["photos_a", 0], upscale_method="area", width=64, height=64, crop="disabled"
    )
    prompt["pair"] = node("ImageBatch", image1=["shrunk", 0], image2=["blank", 0])
    prompt["likeness"] = node(
        "DiffLoRASimilarity", difflora=["difflora", 0], features=["encode_a", 0], images=["pair", 0]
    )
    report = text(server, prompt, ["likeness", 1])
    assert "no face found in 1 of 2, counted as 0" in report and "picture 2: 0, no face found" in report
    alone = float(re.search(r"picture 1: ([\d.]+)", report)[1])
    assert alone > 0.7
    assert float(text(server, prompt, ["likeness", 0])) == pytest.approx(alone / 2, abs=1e-3)


# Personalise


def test_personalise_is_the_three_nodes_in_one(server):
    prompt = people()
    prompt["all"] = node(
        "DiffLoRAPersonalise",
        model=["world", 0],
        photos=["photos_a", 0],
        seed=0,
        likeness=1.0,
        without_face="error",
    )
    expected = drawn(prompt, ["lora_a", 0])
    expected["apply"]["inputs"]["strength"] = ["lora_a", 1]
    expected = saved(server, expected, ["picture", 0])
    np.testing.assert_array_equal(saved(server, {**prompt, **picture(["all", 0])}, ["picture", 0]), expected)
    report = text(server, prompt, ["all", 2])
    assert "photo 1 of 1: used" in report and "recommended strength" in report
    blank = {**prompt, "blank": node("TestPicture", kind="blank")}
    blank["all"] = {**prompt["all"], "inputs": {**prompt["all"]["inputs"], "photos": ["blank", 0]}}
    with pytest.raises(ExecutionFailed, match="no face found"):
        text(server, blank, ["all", 2])


def with_other_model(kind):
    prompt = people()
    prompt["other"] = node("TestOtherModel", kind=kind, model=["world", 0])
    photos = {"photos": ["photos_a", 0], "seed": 0, "likeness": 1.0, "without_face": "error"}
    prompt["all"] = node("DiffLoRAPersonalise", model=["other", 0], **photos)
    return prompt


def test_a_distant_fine_tune_is_told(server):
    report = text(server, with_other_model("fine-tune"), ["all", 2])
    assert "careful: the layers that DiffLoRA changes differ by" in report
    assert "likeness may suffer" in report


def test_a_model_of_another_family_is_refused_before_anything_is_patched(server):
    prompt = with_other_model("family")
    prompt["difflora"] = node(
        "DiffLoRALoadModel", checkpoint="synthetic world (built in)", model=["other", 0]
    )
    prompt["all"]["inputs"]["difflora"] = ["difflora", 0]
    with pytest.raises(ExecutionFailed, match="nothing was patched, because"):
        text(server, prompt, ["all", 2])

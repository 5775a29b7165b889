"""The demo, whole: the files that it promises and likeness that is not luck."""

import json

from PIL import Image

from difflora import Lora
from difflora.__main__ import main
from difflora.demo import NUM_PEOPLE, PROMPT_PHRASES, scene_with
from difflora.synthetic.scenes import ATTRIBUTES


def test_demo_draws_somebody_nobody_has_seen(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path), "--device", "cpu"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    similarity, accuracy = report["identity_similarity"], report["prompt_accuracy"]
    assert similarity["personalised"] > similarity["base_model"] + 0.25
    assert accuracy["personalised"] > accuracy["base_model"] - 0.05
    own = [one["identity_similarity"]["personalised"] for one in report["people"]]
    assert len(own) == NUM_PEOPLE and abs(sum(own) / NUM_PEOPLE - similarity["personalised"]) < 1e-3
    assert sum(report["seconds"].values()) < 60
    assert len(report["prompts"]) == len(PROMPT_PHRASES)
    assert Lora.load(tmp_path / "lora.safetensors").layout.num_parameters > 1000
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 1000
    assert "identity similarity" in capsys.readouterr().out


def test_prompts_say_what_they_list_and_nothing_about_the_person():
    words = {phrase for phrases in ATTRIBUTES.values() for phrase in phrases}
    for phrases in PROMPT_PHRASES:
        assert set(phrases) <= words
        prompt = scene_with(phrases).prompts()[0]
        assert all(phrase in prompt for phrase in phrases)

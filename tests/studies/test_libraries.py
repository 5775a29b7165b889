"""Libraries of the settings: as make_loras makes them, and with a lora_down of everybody's own."""

import dataclasses
import json

import pytest
import torch

from difflora.batched import batched_lora
from difflora.layout import LoraLayout, init_shared_down
from studies import libraries
from studies.libraries import SETTINGS, Loras, Setting, make_library, own_down
from training import make_loras
from training.lora_library import LibraryConfig

MAKING = LibraryConfig(rank=2, down="random", pictures=4, batch=2, steps=3, pictures_per_step=2)


def test_nobody_shares_a_lora_down_of_their_own(one_block_base):
    layout = LoraLayout.from_model(one_block_base.denoiser, rank=2)
    train, validation = (own_down(layout, split, [0, 1]) for split in ("train", "validation"))
    for name in train:
        everybody = torch.cat([train[name], validation[name]])  # (4, R, in)
        assert all(not torch.equal(a, b) for i, a in enumerate(everybody) for b in everybody[:i])
    assert torch.equal(own_down(layout, "train", [1])["block.attn1.to_q"], train["block.attn1.to_q"][1:])


def test_a_whole_lora_does_what_its_factors_do(one_block_base, tmp_path, generator):
    setting = Setting("own", MAKING, own_down=True)
    make_library(one_block_base, setting, tmp_path, {"train": 3}, 0)
    loras = Loras.read(tmp_path, setting, "train", 3)
    assert loras.down is None
    layout = LoraLayout.from_model(one_block_base.denoiser, rank=2)
    down = own_down(layout, "train", [0, 1, 2])
    parts = loras.layout.unflatten(loras.flat)
    ups = layout.flatten({key: part for key, part in parts.items() if key[1] == "lora_up"})
    x, t, text = torch.randn(3, 8, 4, 4, generator=generator), torch.zeros(3), torch.zeros(3, 5, 12)
    outputs = []
    for flat, shape, given in ((loras.flat, loras.layout, None), (ups, layout, down)):
        with batched_lora(one_block_base.denoiser, shape, flat, given):
            outputs.append(one_block_base.denoiser(x, t, text).sample)
    assert torch.allclose(*outputs, atol=1e-6)
    assert not torch.allclose(outputs[0], one_block_base.denoiser(x, t, text).sample, atol=1e-4)


def test_a_gauge_changes_the_numbers_and_nothing_else(one_block_base, tmp_path, generator):
    make_library(one_block_base, Setting("plain", MAKING), tmp_path, {"train": 3}, 0)
    plain = Loras.read(tmp_path, Setting("plain", MAKING), "train", 3)
    other = Loras.read(tmp_path, Setting("gauge", MAKING, gauge=True), "train", 3)
    x, t, text = torch.randn(3, 8, 4, 4, generator=generator), torch.zeros(3), torch.zeros(3, 5, 12)
    outputs = []
    for loras in (plain, other):
        with batched_lora(one_block_base.denoiser, loras.layout, loras.flat, loras.down):
            outputs.append(one_block_base.denoiser(x, t, text).sample)
    assert torch.allclose(*outputs, atol=1e-5)
    downs = other.layout.factors(other.flat, None)["block.attn1.to_q"][0]  # (3, R, in)
    assert not torch.allclose(downs[0], downs[1], atol=1e-2)


@pytest.mark.parametrize("like", [{}, {"like": "0123456789abcdef"}])  # --like CHECKPOINT
def test_a_library_of_make_loras_is_taken_over(one_block_base, tmp_path, monkeypatch, like):
    options = "--people 2 --batch 2 --pictures 4 --steps 3 --pictures-per-step 2 --rank 2 --down random"
    parsed = make_loras.parse([*options.split(), "--out", str(tmp_path)])
    people, count = make_loras.open_people(parsed)
    make_loras.run(one_block_base, people, count, parsed)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | like), encoding="utf-8")
    monkeypatch.setattr(make_loras, "train_loras", None)  # training again would fail
    make_library(one_block_base, Setting("same", MAKING), tmp_path, {"train": 2}, 0)
    assert Loras.read(tmp_path, Setting("same", MAKING), "train", 2).flat.shape[0] == 2


def test_a_probe_scales_with_the_steps(one_block_base, monkeypatch):
    monkeypatch.setattr(libraries, "train_loras", lambda *_: None)
    clock = iter([0.0, 9.0, 10.0, 14.0] * 2)  # 9 s to warm up, then 4 s
    monkeypatch.setattr(libraries.time, "process_time", lambda: next(clock))
    pictures = torch.zeros(8, 4, 8, 4, 4), torch.zeros(4, 5, 12)
    for steps in (10, 30):  # 4 s for two steps of eight people
        setting = Setting("x", dataclasses.replace(MAKING, steps=steps))
        assert libraries.seconds_per_person(one_block_base, setting, pictures) == pytest.approx(steps / 4)


def test_settings_change_what_they_say():
    default = SETTINGS["default"].making
    assert default == LibraryConfig() and not SETTINGS["default"].own_down
    assert SETTINGS["own_down"].making == SETTINGS["random_down"].making != default
    for name, changed in {
        "rank_1": {"rank": 1},
        "steps_30": {"steps": 30},
        "steps_120": {"steps": 120},
    }.items():
        assert SETTINGS[name].making == dataclasses.replace(default, **changed)


def test_down_shapes_for_training(one_block_base):
    layout = LoraLayout.from_model(one_block_base.denoiser, rank=2)
    shared, own = init_shared_down(layout), own_down(layout, "train", [0, 1, 2])
    assert all(own[name].shape == (3, *shared[name].shape) for name in shared)

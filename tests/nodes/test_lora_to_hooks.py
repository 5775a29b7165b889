"""LoRA to Hooks with the core nodes: two people in one picture, start and end, and nothing left behind."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from difflora.synthetic.judge import Judge
from difflora.synthetic.people import sample_people

sys.path.insert(0, str(Path(__file__).parent))
import prompts
from host_server import ExecutionFailed

pytestmark = pytest.mark.host
PEOPLE = (0, 3)  # one has to see that they are different people
COUNT = 4


def hooked(name: str = "", **inputs: object) -> dict:
    """The node LoRA to Hooks for the LoRA "lora" + name."""
    given = {"strength": 1.5, "start_percent": 0.0, "end_percent": 1.0, **inputs}
    given = {"model": ["world", 0], "lora": [f"lora{name}", 0], **given}
    return prompts.node("DiffLoRALoraToHooks", **given)


def one_person(**inputs: object) -> dict:
    """Person 0 in the whole picture, by hooks."""
    graph = {**prompts.plain(), **prompts.person(), "hooks": hooked(**inputs)}
    wearing = {
        "cond_NEW": ["positive", 0],
        "strength": 1.0,
        "set_cond_area": "default",
        "hooks": ["hooks", 0],
    }
    graph["hooked"] = prompts.node("ConditioningSetProperties", **wearing)
    graph["sampler"]["inputs"]["positive"] = ["hooked", 0]
    return graph


def two_people(left: int, right: int) -> dict:
    """Two people side by side: a mask and hooks for each half of a wide picture."""
    graph = {**prompts.plain(width=128, count=COUNT)}
    graph |= {**prompts.person(left, "_left"), **prompts.person(right, "_right")}
    graph |= {"hooks_left": hooked("_left"), "hooks_right": hooked("_right")}
    graph["nothing"] = prompts.node("SolidMask", value=0.0, width=128, height=64)
    graph["half"] = prompts.node("SolidMask", value=1.0, width=64, height=64)
    for side, x in (("left", 0), ("right", 64)):
        places = {"destination": ["nothing", 0], "source": ["half", 0], "x": x, "y": 0, "operation": "add"}
        graph[f"mask_{side}"] = prompts.node("MaskComposite", **places)
    new = {"positive_NEW": ["positive", 0], "negative_NEW": ["negative", 0]}
    new |= {"strength": 1.0, "set_cond_area": "mask bounds"}
    graph["first"] = prompts.node(
        "PairConditioningSetProperties", mask=["mask_left", 0], hooks=["hooks_left", 0], **new
    )
    graph["both"] = prompts.node(
        "PairConditioningSetPropertiesAndCombine",
        positive=["first", 0],
        negative=["first", 1],
        mask=["mask_right", 0],
        hooks=["hooks_right", 0],
        **new,
    )
    graph["sampler"]["inputs"] |= {"positive": ["both", 0], "negative": ["both", 1]}
    return graph


def likeness(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (n, 128, 256, 3) -> mean cosine of left and right half to both people, (2,) each."""
    judge = Judge.load()
    targets = judge.targets(torch.cat([sample_people("test", number, 1) for number in PEOPLE]))  # (2, E)
    unit = torch.from_numpy(drawn).movedim(-1, 1).float() / 127.5 - 1  # (n, 3, 128, 256)
    halves = [unit[..., :128], unit[..., 128:]]
    return tuple(
        judge.similarity(half.expand(2, *half.shape), targets).mean(dim=1).numpy() for half in halves
    )


def test_each_half_is_its_own_person(server):
    left, right = likeness(prompts.pictures(server, two_people(*PEOPLE)))
    assert left[0] > left[1] + 0.2, (left, right)
    assert right[1] > right[0] + 0.2, (left, right)
    swapped_left, swapped_right = likeness(prompts.pictures(server, two_people(*reversed(PEOPLE))))
    assert swapped_left[1] > swapped_left[0] + 0.2 and swapped_right[0] > swapped_right[1] + 0.2


def test_another_person_on_the_right_leaves_the_left_half_as_it_is(server):
    first, second = (prompts.pictures(server, two_people(PEOPLE[0], right)) for right in (PEOPLE[1], 5))
    changed = np.abs(first - second).mean(axis=(0, 1, 3))  # (256,) columns; the decoder looks across the seam
    assert changed[:96].max() < 0.2 and changed[128:].mean() > 2


def test_hooks_for_everything_are_apply(server):
    expected = prompts.pictures(server, prompts.applied(1.5))
    assert np.abs(prompts.pictures(server, one_person()) - expected).max() <= 1


def test_start_and_end(server):
    base, full = (prompts.pictures(server, graph) for graph in (prompts.plain(), one_person()))
    early, late, never = (
        prompts.pictures(server, one_person(start_percent=start, end_percent=end))
        for start, end in ((0.0, 0.5), (0.5, 1.0), (0.999, 1.0))
    )
    np.testing.assert_array_equal(never, base)  # no step of 8 lies there
    for part in (early, late):
        assert np.abs(part - base).mean() > 0.5 and np.abs(part - full).mean() > 0.5
    assert np.abs(early - late).mean() > 0.5
    np.testing.assert_array_equal(prompts.pictures(server, one_person(strength=0.0)), base)


def test_earlier_hooks_act_too_and_stay_as_they_are(server):
    graph = one_person(strength=0.5)
    half = prompts.pictures(server, graph)
    graph["more"] = hooked(strength=1.0, prev_hooks=["hooks", 0])
    graph["hooked"]["inputs"]["hooks"] = ["more", 0]
    assert np.abs(prompts.pictures(server, graph) - prompts.pictures(server, one_person())).max() <= 1
    np.testing.assert_array_equal(prompts.pictures(server, one_person(strength=0.5)), half)


@pytest.mark.parametrize("kind", ["renamed", "one_shape", "half", "nan", "empty"])
def test_lora_that_does_not_fit_is_refused(server, kind):
    graph = one_person(lora=["wrong", 0])
    graph["wrong"] = prompts.node("TestLora", kind=kind, lora=["lora", 0])
    with pytest.raises(ExecutionFailed, match="does not fit this MODEL"):
        server.run(graph)


def test_a_lora_that_would_never_act_is_refused(server):
    with pytest.raises(ExecutionFailed, match=r"start_percent 0\.6 is not before end_percent 0\.4"):
        server.run(one_person(start_percent=0.6, end_percent=0.4))


def test_block_weights_act(server):
    drawn = prompts.pictures(server, one_person(block_weights="ALL=0"))
    np.testing.assert_array_equal(drawn, prompts.pictures(server, prompts.plain()))


def test_the_base_model_is_bit_identical_afterwards(server):
    before = prompts.pictures(server, prompts.plain(seed=12))
    prompts.pictures(server, two_people(*PEOPLE))
    cached: list[str] = []
    after = prompts.pictures(server, prompts.plain(seed=12), cached)
    assert "world" in cached and "sampler" not in cached
    np.testing.assert_array_equal(after, before)

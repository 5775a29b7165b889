"""A merged LoRA computes what peft computes, and leaves no trace when removed."""

import copy

import pytest
import torch
from torch import nn

from difflora.errors import LayoutError
from difflora.layout import LoraLayout, init_shared_down
from difflora.lora import Lora
from difflora.patch import apply_lora


@pytest.fixture
def loras(tiny_base, random_weights):
    layout = LoraLayout.from_model(tiny_base.denoiser, alpha=6)
    down = init_shared_down(layout)
    return [Lora.from_flat(layout, flat, down) for flat in random_weights(layout, 2)]


@torch.no_grad()
def output_of(model, inputs):
    return model(*inputs).sample


@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_equals_peft(tiny_base, loras, random_inputs, strength):
    peft = pytest.importorskip("peft")
    lora, inputs = loras[0], random_inputs(2)
    reference = copy.deepcopy(tiny_base.denoiser)
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=list(lora.up))
    reference = peft.inject_adapter_in_model(config, reference)
    for name in lora.up:
        module = reference.get_submodule(name)
        module.lora_A["default"].weight.data.copy_(lora.down[name])
        module.lora_B["default"].weight.data.copy_(lora.up[name])
        module.scaling["default"] *= strength
    without = output_of(tiny_base.denoiser, inputs)
    with apply_lora(tiny_base.denoiser, lora, strength):
        patched = output_of(tiny_base.denoiser, inputs)
    assert (patched - without).abs().mean() > 1e-2  # the LoRA does something
    torch.testing.assert_close(patched, output_of(reference, inputs), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_removal_is_bit_exact(tiny_base, loras, dtype):
    model = tiny_base.denoiser.to(dtype)
    before = copy.deepcopy(model.state_dict())
    for _ in range(3):
        with apply_lora(model, loras[0], 0.7):
            assert any(not torch.equal(before[k], v) for k, v in model.state_dict().items())
    handle = apply_lora(model, loras[1])
    handle.remove()
    handle.remove()  # twice is once
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) and after[key].dtype == dtype for key in before)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_loras_stack_and_come_off_in_reverse_order(tiny_base, loras):
    model = tiny_base.denoiser
    before = copy.deepcopy(model.state_dict())
    first, second = (apply_lora(model, lora) for lora in loras)
    with pytest.raises(LayoutError, match="reverse order"):
        first.remove()
    second.remove()
    first.remove()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_removed_after_an_error(tiny_base, loras):
    before = copy.deepcopy(tiny_base.denoiser.state_dict())
    with pytest.raises(RuntimeError), apply_lora(tiny_base.denoiser, loras[0]):
        raise RuntimeError
    assert all(torch.equal(before[key], value) for key, value in tiny_base.denoiser.state_dict().items())


def test_a_model_that_does_not_fit_is_not_touched(tiny_base, loras):
    model = tiny_base.denoiser
    name = loras[0].layout.modules[-1].name
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Linear(3, 5))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(LayoutError, match="maps 3 -> 5, expected"):
        apply_lora(model, loras[0])
    with pytest.raises(LayoutError, match=r"is missing.*and 35 more"):
        apply_lora(nn.Linear(2, 2), loras[0])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())

"""Row b * K + k of a batch sees the LoRA of identity b, exactly as if that LoRA were merged."""

import pytest
import torch

from difflora.batched import batched_lora
from difflora.errors import LayoutError
from difflora.layout import LoraLayout, init_shared_down
from difflora.lora import Lora
from difflora.patch import apply_lora

IDENTITIES, ROWS = 3, 2


@pytest.mark.parametrize("train_down", [False, True])
@pytest.mark.parametrize("strength", [0.7, torch.tensor([0.5, 1.0, -1.5])])
def test_equals_merging_one_by_one(tiny_base, random_weights, random_inputs, train_down, strength):
    model = tiny_base.denoiser
    layout = LoraLayout.from_model(model, alpha=6, train_down=train_down)
    flat, inputs = random_weights(layout, IDENTITIES), random_inputs(IDENTITIES * ROWS)
    down = None if train_down else init_shared_down(layout)
    with torch.no_grad():
        without = model(*inputs).sample
        with batched_lora(model, layout, flat, down, strength):
            together = model(*inputs).sample
        for b in range(IDENTITIES):
            rows = slice(b * ROWS, (b + 1) * ROWS)
            own = float(torch.as_tensor(strength).expand(IDENTITIES)[b])
            with apply_lora(model, Lora.from_flat(layout, flat[b], down), own):
                alone = model(*(x[rows] for x in inputs)).sample
            torch.testing.assert_close(together[rows], alone, atol=1e-5, rtol=1e-4)
        assert torch.equal(model(*inputs).sample, without)  # the hooks are gone


def test_gradients_reach_only_their_own_identity(tiny_base, random_weights, random_inputs):
    layout = LoraLayout.from_model(tiny_base.denoiser)
    flat = random_weights(layout, IDENTITIES).requires_grad_()
    down = init_shared_down(layout)
    with batched_lora(tiny_base.denoiser, layout, flat, down):
        output = tiny_base.denoiser(*random_inputs(IDENTITIES * ROWS)).sample  # (B*K, 4, 4, 4)
    output[ROWS : 2 * ROWS].square().mean().backward()
    used = flat.grad.abs().sum(dim=1) > 0
    assert used.tolist() == [False, True, False]


def test_works_under_bfloat16_autocast(tiny_base, random_weights, random_inputs):
    layout = LoraLayout.from_model(tiny_base.denoiser)
    flat = random_weights(layout, IDENTITIES).requires_grad_()
    inputs, down = random_inputs(IDENTITIES * ROWS), init_shared_down(layout)
    outputs = []
    for enabled in (False, True):
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=enabled),
            batched_lora(tiny_base.denoiser, layout, flat, down),
        ):
            outputs.append(tiny_base.denoiser(*inputs).sample)
    outputs[1].float().square().mean().backward()
    assert flat.grad.isfinite().all()
    # bfloat16 has 8 bits: a few per cent after some layers
    assert (outputs[1] - outputs[0]).norm() / outputs[0].norm() < 0.05


def test_misfits(tiny_base, random_weights, random_inputs):
    layout = LoraLayout.from_model(tiny_base.denoiser)
    flat, down = random_weights(layout, IDENTITIES), init_shared_down(layout)
    with pytest.raises(LayoutError, match="not a multiple"):
        with batched_lora(tiny_base.denoiser, layout, flat, down):
            tiny_base.denoiser(*random_inputs(IDENTITIES * ROWS - 1))
    with pytest.raises(LayoutError, match="batch dimension"):
        batched_lora(tiny_base.denoiser, layout, flat[0], down).__enter__()
    with pytest.raises(LayoutError, match="is missing"):
        batched_lora(torch.nn.Linear(2, 2), layout, flat, down).__enter__()
    assert not any(module._forward_hooks for module in tiny_base.denoiser.modules())

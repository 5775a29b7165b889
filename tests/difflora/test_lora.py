"""A LoRA file has the keys other tools read, comes back as it went, and says what does not fit."""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from difflora.errors import CheckpointError, LayoutError
from difflora.files import load_safetensors
from difflora.layout import LoraLayout, init_shared_down
from difflora.lora import Lora, lora_from_state_dict
from difflora.lora_keys import STYLES, kohya_key
from difflora.patch import apply_lora


@pytest.fixture
def layout(tiny_base):
    return LoraLayout.from_model(tiny_base.denoiser, alpha=8)


@pytest.fixture
def lora(layout, random_weights):
    return Lora.from_flat(
        layout, random_weights(layout, 1)[0], init_shared_down(layout), {"modelspec.title": "Ann"}
    )


def test_flat_inverts_from_flat(tiny_base, random_weights):
    for train_down in (False, True):
        layout = LoraLayout.from_model(tiny_base.denoiser, train_down=train_down)
        flat = random_weights(layout, 1)[0]
        down = None if train_down else init_shared_down(layout)
        assert torch.equal(Lora.from_flat(layout, flat, down).flat(), flat)


def test_file_round_trip(tmp_path, lora):
    path = lora.save(tmp_path / "ann.safetensors")
    loaded = Lora.load(path)
    assert loaded.layout == lora.layout
    for name in lora.up:
        assert torch.equal(loaded.up[name], lora.up[name].half().float())
        assert torch.equal(loaded.down[name], lora.down[name].half().float())
    exact = Lora.load(lora.save(tmp_path / "exact.safetensors", dtype=torch.float32), lora.layout)
    assert torch.equal(exact.flat(), lora.flat())
    tensors, metadata = load_safetensors(path)
    key = kohya_key(lora.layout.modules[0].name)
    assert {k for k in tensors if k.startswith(f"{key}.")} == {
        f"{key}.lora_down.weight",
        f"{key}.lora_up.weight",
        f"{key}.alpha",
    }
    assert tensors[f"{key}.alpha"].shape == ()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert metadata["modelspec.title"] == "Ann"
    assert (metadata["ss_network_module"], metadata["ss_network_dim"]) == ("networks.lora", "4")
    assert float(metadata["ss_network_alpha"]) == 8
    assert metadata["difflora.layout_fingerprint"] == lora.layout.fingerprint


@pytest.mark.parametrize("style", STYLES)
def test_tensors_carry_metadata_and_layout(lora, style):
    tensors = lora.state_dict(torch.float32, style)
    assert isinstance(tensors, dict)
    back = lora_from_state_dict(tensors)
    assert back.metadata["modelspec.title"] == "Ann"
    expected = replace(lora.layout, alpha=4.0) if style == "diffusers" else lora.layout  # scale in lora_up
    assert back.layout == expected
    plain = lora_from_state_dict(dict(tensors))  # an ordinary dict has neither
    assert plain.metadata == {} and plain.layout.train_down


def test_tensors_that_somebody_changed_count_more_than_the_layout_that_came_along(lora):
    tensors, first = lora.state_dict(torch.float32), next(iter(lora.up))
    for key in [key for key in tensors if key.startswith(f"{kohya_key(first)}.")]:  # a module less
        del tensors[key]
    back = lora_from_state_dict(tensors)
    assert back.up.keys() == lora.up.keys() - {first} and back.metadata["modelspec.title"] == "Ann"
    tensors.metadata.clear()
    assert lora_from_state_dict(tensors).up.keys() == back.up.keys()


def test_foreign_file_without_our_metadata(tmp_path, lora):
    save_file(lora.state_dict(torch.float32), tmp_path / "foreign.safetensors")
    foreign = Lora.load(tmp_path / "foreign.safetensors")
    assert {m.name for m in foreign.layout.modules} == {m.name for m in lora.layout.modules}
    assert (foreign.layout.alpha, foreign.layout.rank, foreign.layout.train_down) == (8, 4, True)
    assert all(torch.equal(foreign.up[name], lora.up[name]) for name in lora.up)


def test_missing_unexpected_and_misshapen_keys(lora):
    tensors = lora.state_dict()
    key = kohya_key(lora.layout.modules[0].name)
    with pytest.raises(LayoutError, match=rf"1 missing keys \({key}.alpha\)"):
        lora_from_state_dict({k: v for k, v in tensors.items() if k != f"{key}.alpha"}, lora.layout)
    with pytest.raises(LayoutError, match=r"1 unexpected keys \(lora_te_x.alpha\)"):
        lora_from_state_dict({**tensors, "lora_te_x.alpha": torch.tensor(1.0)}, lora.layout)
    with pytest.raises(LayoutError, match="has shape"):
        lora_from_state_dict({**tensors, f"{key}.lora_up.weight": torch.zeros(3, 4)}, lora.layout)
    with pytest.raises(LayoutError, match="alpha"):
        lora_from_state_dict({**tensors, f"{key}.alpha": torch.tensor(1.0)}, lora.layout)
    with pytest.raises(LayoutError, match="the ranks differ"):
        lora_from_state_dict({**tensors, f"{key}.lora_up.weight": tensors[f"{key}.lora_up.weight"][:, :3]})
    with pytest.raises(LayoutError, match="only LoRAs of linear layers"):
        lora_from_state_dict({k: v[..., None, None] for k, v in tensors.items()}, lora.layout)


def test_numbers_that_are_not_finite_or_do_not_fit_the_dtype(lora):
    name = lora.layout.modules[0].name
    with pytest.raises(LayoutError, match="finite"):
        Lora(lora.layout, lora.down, {**lora.up, name: lora.up[name] / 0})
    large = Lora(lora.layout, lora.down, {**lora.up, name: torch.full_like(lora.up[name], 1e6)})
    with pytest.raises(LayoutError, match=r"too large for torch\.float16"):
        large.state_dict()
    assert large.state_dict(torch.float32)[f"{kohya_key(name)}.lora_up.weight"].max() == 1e6


def changes(lora):
    """What a LoRA adds to the weights at strength 1, module by module."""
    return {name: lora.layout.scale * up.double() @ lora.down[name].double() for name, up in lora.up.items()}


def check_same_changes(lora, expected, tolerance=1e-6):
    assert lora.up.keys() == expected.keys()
    for name, change in changes(lora).items():
        torch.testing.assert_close(change, expected[name], atol=tolerance, rtol=0)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_style_and_dtype_comes_back(tmp_path, lora, style, dtype):
    path = lora.save(tmp_path / "adapter_model.safetensors", dtype=dtype, key_style=style)
    tensors, _ = load_safetensors(path)
    assert {t.dtype for key, t in tensors.items() if not key.endswith(".alpha")} == {dtype}
    loaded = Lora.load(path)
    assert loaded.layout.modules == lora.layout.modules
    # alpha 8, rank 4: the scale 2 stays in alpha, or is doubled numbers, which every dtype holds exactly
    assert loaded.layout.alpha == (4 if style == "diffusers" else 8)
    factor = 2 if style == "diffusers" else 1
    for name in lora.up:
        assert torch.equal(loaded.up[name], factor * lora.up[name].to(dtype).float())
        assert torch.equal(loaded.down[name], lora.down[name].to(dtype).float())


def test_alpha_that_bfloat16_cannot_hold(tmp_path, layout, random_weights):
    layout = replace(layout, alpha=5.3)
    lora = Lora.from_flat(layout, random_weights(layout, 1)[0], init_shared_down(layout))
    assert Lora.load(lora.save(tmp_path / "a.safetensors", dtype=torch.bfloat16)).layout.alpha == 5.3


def test_foreign_modules_of_several_ranks_and_alphas(lora):
    tensors = lora.state_dict(torch.float32)
    names = [module.name for module in lora.layout.modules]
    first, second = (kohya_key(name) for name in names[:2])
    for part, kept in (("lora_down", (slice(2),)), ("lora_up", (slice(None), slice(2)))):
        tensors[f"{first}.{part}.weight"] = tensors[f"{first}.{part}.weight"][kept]  # rank 2
    tensors[f"{second}.alpha"] = torch.tensor(3.0)
    expected = changes(lora)
    expected[names[0]] = 8 / 2 * lora.up[names[0]][:, :2].double() @ lora.down[names[0]][:2].double()
    expected[names[1]] = 3 / 4 * lora.up[names[1]].double() @ lora.down[names[1]].double()
    read = lora_from_state_dict(tensors)
    assert (read.layout.rank, read.layout.scale) == (4, 1)
    check_same_changes(read, expected)
    with pytest.raises(LayoutError):  # a given layout is not bent
        lora_from_state_dict(tensors, lora.layout)


def test_foreign_file_without_alphas_has_scale_1(lora):
    tensors = {k: v for k, v in lora.state_dict(torch.float32).items() if not k.endswith(".alpha")}
    assert lora_from_state_dict(tensors).layout.scale == 1


@pytest.mark.parametrize("style", STYLES)
def test_patched_weights_by_hand(tmp_path, tiny_base, lora, style):
    path = lora.save(tmp_path / "adapter_model.safetensors", dtype=torch.float32, key_style=style)
    name = lora.layout.modules[-1].name
    module = tiny_base.denoiser.get_submodule(name)
    expected = module.weight + 0.7 * (8 / 4) * lora.up[name] @ lora.down[name]
    with apply_lora(tiny_base.denoiser, Lora.load(path), strength=0.7):
        torch.testing.assert_close(module.weight, expected, atol=1e-6, rtol=0)


def test_damaged_files(tmp_path, lora):
    path = lora.save(tmp_path / "ann.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        Lora.load(path)
    torch.save(lora.state_dict(), tmp_path / "ann.pt")
    with pytest.raises(CheckpointError, match="pickle"):
        Lora.load(tmp_path / "ann.pt")


def test_diffusers_draws_the_same_with_the_file(tmp_path, tiny_base, lora, random_inputs):
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    path = lora.save(tmp_path / "ann.safetensors", dtype=torch.float32)
    tensors, alphas = diffusers.StableDiffusionPipeline.lora_state_dict(path)
    reference, inputs = copy.deepcopy(tiny_base.denoiser), random_inputs(2)
    diffusers.StableDiffusionPipeline.load_lora_into_unet(tensors, alphas, reference)
    with torch.no_grad(), apply_lora(tiny_base.denoiser, Lora.load(path)):
        difference = tiny_base.denoiser(*inputs).sample - reference(*inputs).sample
    assert difference.abs().max() < 1e-4

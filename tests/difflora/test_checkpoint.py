"""The checkpoint: its own inverse, and everything that is not one is refused with a reason."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from difflora.autoencoder import LaeConfig
from difflora.base_sketch import sketch_base
from difflora.checkpoint import (
    HEADER_KEY,
    Checkpoint,
    Recommended,
    inspect_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from difflora.errors import CheckpointError, LayoutError
from difflora.files import load_safetensors, save_safetensors
from difflora.hypernetwork import HypernetworkConfig, LoraHypernetwork
from difflora.layout import LoraLayout, ModuleSpec, init_shared_down
from difflora.mixing import MifConfig
from difflora.model import DiffLoRA
from difflora.transformer import DitConfig

LAYOUT = LoraLayout((ModuleSpec("a", 8, 12), ModuleSpec("b", 8, 10)), rank=2, alpha=2.0)
CONFIG = HypernetworkConfig(
    LaeConfig(latent_tokens=3, latent_channels=4, token_size=8, token_width=4, width=8),
    MifConfig(face_width=16, image_width=6, width=8, heads=2),
    DitConfig(latent_tokens=3, latent_channels=4, condition_width=8, width=16, depth=1, heads=2),
)


@pytest.fixture
def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    networks = LoraHypernetwork(LAYOUT, CONFIG)
    networks.weight_rms.fill_(1e-6)
    recommended = Recommended(strength=1.5, noise_scale=0.0)
    return Checkpoint(networks, init_shared_down(LAYOUT), "tiny", "synthetic", "clip", recommended)


@pytest.fixture
def path(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "difflora.safetensors", checkpoint)


def rewrite(path: Path, tensors: dict[str, torch.Tensor] | None = None, **changes: object) -> Path:
    """The same file with other header entries."""
    old, metadata = load_safetensors(path)
    header = json.loads(metadata[HEADER_KEY]) | changes
    return save_safetensors(path, old if tensors is None else tensors, {HEADER_KEY: json.dumps(header)})


def test_load_is_the_inverse_of_save(checkpoint: Checkpoint, path: Path) -> None:
    loaded = load_checkpoint(path, layout=LAYOUT)
    for name, tensor in checkpoint.networks.state_dict().items():
        assert torch.equal(loaded.networks.state_dict()[name], tensor), name
    assert loaded.networks.config == CONFIG
    assert loaded.layout == LAYOUT
    assert loaded.recommended == checkpoint.recommended
    assert (loaded.base_model, loaded.face_pack, loaded.image_encoder) == ("tiny", "synthetic", "clip")
    assert all(torch.equal(loaded.shared_down[name], down) for name, down in checkpoint.shared_down.items())
    assert not any(parameter.requires_grad for parameter in loaded.networks.parameters())


def test_sketch_of_the_base_model_is_kept_and_optional(checkpoint: Checkpoint, path: Path) -> None:
    assert load_checkpoint(path).base_sketch is None  # as in files that were written before there was one
    weights = {"a.weight": torch.randn(12, 8), "b.weight": torch.randn(10, 8)}
    sketch = sketch_base(LAYOUT, weights)
    save_checkpoint(path, replace(checkpoint, base_sketch=sketch), torch.float16)
    loaded = load_checkpoint(path)
    assert loaded.base_sketch is not None
    assert torch.equal(loaded.base_sketch.projections, sketch.projections)
    model = DiffLoRA(loaded)
    assert model.base_fit({name: 1.5 * weight for name, weight in weights.items()}).is_far
    assert model.base_fit(weights).distance == 0
    with pytest.raises(LayoutError, match=r"for tiny \(no U-Net"):
        model.base_fit({"a.weight": torch.zeros(3, 3)})
    tensors, _ = load_safetensors(path)
    del tensors["base_sketch.squared_norms"]
    rewrite(path, tensors)
    with pytest.raises(CheckpointError, match="sketch of the base model is damaged"):
        load_checkpoint(path)


def test_half_precision_keeps_statistics(checkpoint: Checkpoint, tmp_path: Path) -> None:
    full = save_checkpoint(tmp_path / "full.safetensors", checkpoint)
    half = save_checkpoint(tmp_path / "half.safetensors", checkpoint, torch.float16)
    assert half.stat().st_size < 0.7 * full.stat().st_size
    assert torch.equal(load_checkpoint(half).networks.weight_rms, checkpoint.networks.weight_rms)


def test_half_precision_keeps_components_in_eight_bits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    networks = LoraHypernetwork(LAYOUT, replace(CONFIG, lae=replace(CONFIG.lae, linear_rank=4)))
    networks.lae.start_from_components(library := torch.randn(9, LAYOUT.num_parameters))
    small = save_checkpoint(
        tmp_path / "small.safetensors",
        Checkpoint(networks, init_shared_down(LAYOUT), "tiny", "synthetic", "clip"),
        torch.float16,
    )
    stored = load_safetensors(small)[0]
    assert stored["networks.lae.linear_path.basis"].dtype == torch.float8_e4m3fn
    loaded = load_checkpoint(small).networks
    assert loaded.lae.linear_path is not None and loaded.lae.linear_path.basis.dtype == torch.float32
    with torch.no_grad():
        before, after = (part.lae.decode(part.lae.encode(library)) for part in (networks, loaded))
    error = (after - before).square().mean() / before.square().mean()
    assert 0 < error < 0.005  # three bits of mantissa: a deviation of 2 to 3 % each way


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "difflora-9"}, "this version reads"),
        ({"surprise": 1}, "unknown \\['surprise'\\]"),
        ({"fingerprint": "0" * 16}, "fingerprint"),
        ({"layout": "{}"}, "layout"),
        ({"config": {"lae": {"colour": 3}}}, "LaeConfig has unknown keys colour"),
        ({"config": {"vae": {}}}, "HypernetworkConfig has unknown keys vae"),
        ({"config": {"lae": {"latent_tokens": 5}}}, "the LAE makes"),
        ({"config": {}}, "do not fit its own configuration"),
        ({"recommended": {"power": 2}}, "unknown keys power"),
    ],
)
def test_damaged_or_newer_headers_are_refused(path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(rewrite(path, **changes))


def test_truncated_foreign_missing_and_mismatched_files_are_refused(path: Path, tmp_path: Path) -> None:
    other = LoraLayout(LAYOUT.modules, rank=3, alpha=3.0)
    with pytest.raises(CheckpointError, match="not for the layout"):
        load_checkpoint(path, layout=other)
    tensors, _ = load_safetensors(path)
    tensors = {name: tensor for name, tensor in tensors.items() if name != "shared_down.a"}
    with pytest.raises(CheckpointError, match="missing a"):
        load_checkpoint(rewrite(path, tensors))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        load_checkpoint(path)
    foreign = save_safetensors(tmp_path / "foreign.safetensors", {"x": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="not a DiffLoRA checkpoint"):
        load_checkpoint(foreign)
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path / "absent.safetensors")


def test_the_header_alone_says_what_it_is_for(path: Path, checkpoint: Checkpoint) -> None:
    facts = inspect_checkpoint(path)
    assert facts.layout == checkpoint.layout
    assert (facts.base_model, facts.face_pack, facts.image_encoder) == ("tiny", "synthetic", "clip")
    tensors, metadata = load_safetensors(path)
    empty = {name: tensor for name, tensor in tensors.items() if not name.startswith("networks.")}
    save_safetensors(path, empty, metadata)
    with pytest.raises(CheckpointError, match="do not fit its own configuration"):
        inspect_checkpoint(path)

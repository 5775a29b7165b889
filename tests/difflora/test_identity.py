"""Identity files: the same person back, no photo in them, no other folder, nothing lost."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from difflora.errors import CheckpointError, DiffLoRAError
from difflora.faces import Face, FaceReport
from difflora.features import Encoders, IdentityFeatures
from difflora.files import load_safetensors
from difflora.identity import (
    HEADER_KEY,
    Identity,
    identity_file_name,
    load_identity,
    save_identity,
)
from difflora.latents import LoraLatent

ENCODERS = Encoders("pack", "0123", "clip", "4567")


class Model:
    """All that loading asks of a model."""

    def __init__(self, encoders: Encoders) -> None:
        self.encoders = encoders


@pytest.fixture
def identity() -> Identity:
    generator = torch.Generator().manual_seed(0)
    report = FaceReport(0, True, "one face found", 1, Face((1.0, 2.0, 3.0, 4.0), 0.9, ()))
    features = IdentityFeatures(
        torch.randn(2, 512, generator=generator),
        torch.randn(2, 6, generator=generator),
        (report,),
        torch.tensor([0.5, 1.5]),
        ENCODERS,
    )
    latent = LoraLatent(torch.randn(3, 4, generator=generator), "lae", features, {"difflora.seed": "7"})
    return Identity(features, latent, "agreed, 2026-11-21, für immer")


def test_there_and_back(identity: Identity, tmp_path) -> None:
    path = save_identity(tmp_path / "identities" / "anna.safetensors", identity)
    back = load_identity(path, Model(ENCODERS))
    assert torch.equal(back.features.face_embedding, identity.features.face_embedding)
    assert torch.equal(back.features.image_features, identity.features.image_features)
    assert torch.equal(back.features.weights, identity.features.weights)
    assert back.features.encoders == ENCODERS and back.note == identity.note
    assert torch.equal(back.latent.latent, identity.latent.latent)
    assert (back.latent.autoencoder, back.latent.settings) == ("lae", {"difflora.seed": "7"})
    plain = Identity(replace(identity.features, weights=None))
    back = load_identity(save_identity(tmp_path / "plain.safetensors", plain))
    assert back.latent is None and back.features.weights is None and back.note == ""


def test_nothing_of_the_photos_is_in_the_file(identity: Identity, tmp_path) -> None:
    path = save_identity(tmp_path / "anna.safetensors", identity)
    tensors, metadata = load_safetensors(path)
    assert set(tensors) == {"face_embedding", "image_features", "weights", "latent"}
    assert set(metadata) == {HEADER_KEY}
    assert set(json.loads(metadata[HEADER_KEY])) == {"format", "encoders", "note", "latent"}
    assert path.stat().st_size < 4 * (2 * 512 + 2 * 6 + 2 + 12) + 2000


def test_other_encoders_are_refused(identity: Identity, tmp_path) -> None:
    path = save_identity(tmp_path / "anna.safetensors", identity)
    for other in (replace(ENCODERS, face_pack="buffalo_l"), replace(ENCODERS, image_fingerprint="89ab")):
        with pytest.raises(DiffLoRAError, match=r"anna\.safetensors: .*encode the photos again"):
            load_identity(path, Model(other))
    with pytest.raises(DiffLoRAError, match="do not say which encoders"):
        save_identity(tmp_path / "x.safetensors", Identity(replace(identity.features, encoders=None)))
    assert not (tmp_path / "x.safetensors").exists()


def test_nobody_is_overwritten_silently(identity: Identity, tmp_path) -> None:
    path = tmp_path / "anna.safetensors"
    other = replace(identity, note="somebody else")
    assert save_identity(path, identity) == path
    assert save_identity(path, identity) == path == save_identity(path, identity, "error")  # the very same
    assert save_identity(path, other) == tmp_path / "anna_2.safetensors" == save_identity(path, other)
    with pytest.raises(DiffLoRAError, match="use another name"):
        save_identity(path, replace(identity, note="a third one"), "error")
    assert load_identity(path).note == identity.note
    save_identity(path, other, "overwrite")
    assert load_identity(path).note == "somebody else"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["anna.safetensors", "anna_2.safetensors"]


@pytest.mark.parametrize("name", ["Anna", "Änna 2", "anna.safetensors", "a.b", "王小明"])
def test_ordinary_names(name: str) -> None:
    assert identity_file_name(f" {name} ") == name.removesuffix(".safetensors") + ".safetensors"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "  ",
        "..",
        ".",
        "../x",
        "a/b",
        "a\\b",
        "C:x",
        "x\ny",
        "a\0b",
        ".x",
        "x.",
        "con",
        "NUL.txt",
        "y" * 101,
    ],
)
def test_names_that_lead_elsewhere(name: str) -> None:
    with pytest.raises(DiffLoRAError):
        identity_file_name(name)


def test_damaged_files_say_so(identity: Identity, tmp_path) -> None:
    path = save_identity(tmp_path / "anna.safetensors", identity)
    tensors, (header,) = load_file(path), load_safetensors(path)[1].values()

    def written(change: dict, **metadata: str):
        save_file({**tensors, **change}, tmp_path / "bad.safetensors", metadata=metadata)
        return tmp_path / "bad.safetensors"

    with pytest.raises(CheckpointError, match="is not an identity"):
        load_identity(written({}))
    with pytest.raises(CheckpointError, match="damaged header"):
        load_identity(written({}, **{HEADER_KEY: "{"}))
    newer = json.dumps({**json.loads(header), "format": "difflora-identity-2"})
    with pytest.raises(CheckpointError, match="update this package"):
        load_identity(written({}, **{HEADER_KEY: newer}))
    with pytest.raises(CheckpointError, match="NaN"):
        load_identity(written({"latent": tensors["latent"] * float("nan")}, **{HEADER_KEY: header}))
    with pytest.raises(CheckpointError, match="shapes"):
        load_identity(written({"image_features": torch.zeros(1, 6)}, **{HEADER_KEY: header}))
    lacking = json.dumps({key: value for key, value in json.loads(header).items() if key != "note"})
    with pytest.raises(CheckpointError, match="lacks note"):
        load_identity(written({}, **{HEADER_KEY: lacking}))
    without = json.dumps({**json.loads(header), "encoders": {}})
    with pytest.raises(CheckpointError, match="is damaged"):
        load_identity(written({}, **{HEADER_KEY: without}))

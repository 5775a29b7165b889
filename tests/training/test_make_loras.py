"""A library grows shard by shard, survives a kill, refuses other settings, ignores how people are batched."""

import argparse

import pytest
import torch

from difflora import DiffLoRA
from difflora.base_model import BaseModel
from difflora.batched import batched_lora
from difflora.checkpoint import load_checkpoint
from difflora.errors import CheckpointError, DiffLoRAError
from difflora.faces import FaceAnalyzer
from difflora.lora_training import LoraTrainingConfig, common_batches
from difflora.model import EMBEDDED_CHECKPOINT
from difflora.synthetic import world
from difflora.synthetic.renderer import PHOTO_PX
from training import make_loras
from training.common import digest_of, read_config
from training.evaluation_people import face_models
from training.identity_loss import IdentityLoss, View
from training.lora_library import load_library
from training.onnx_network import OnnxNetwork
from training.pictures import PhotoFolders, RenderedPeople


def make(base, folder, *arguments):
    common = "--people 5 --batch 2 --pictures 4 --steps 3 --pictures-per-step 2 --rank 2".split()
    options = make_loras.parse([*common, "--out", str(folder), *arguments])
    people, count = make_loras.open_people(options)
    make_loras.run(base, people, count, options)


@pytest.fixture
def library(one_block_base, tmp_path):
    make(one_block_base, tmp_path / "library")
    return tmp_path / "library"


def test_library_has_everybody_once_and_splits_share_lora_down(one_block_base, library):
    train = load_library(library)
    assert train.people.tolist() == [0, 1, 2, 3, 4]
    assert train.flat.shape == (5, train.layout.num_parameters)
    assert (train.flat.abs().amax(dim=1) > 0).all()
    assert len({tuple(row.tolist()) for row in train.flat}) == 5
    make(one_block_base, library, "--split", "test", "--people", "2")
    test = load_library(library, "test")
    assert len(test.flat) == 2
    assert not torch.equal(test.flat, train.flat[:2])  # other people
    assert all(torch.equal(train.shared_down[name], test.shared_down[name]) for name in train.shared_down)
    with pytest.raises(CheckpointError, match="--split validation"):
        load_library(library, "validation")


def test_reference_photos_go_beside_the_split_with_the_same_settings(one_block_base, library, monkeypatch):
    class Finds:
        def __init__(self, folder):
            pass

        def analyze(self, photos):
            assert len(photos) == 1

    monkeypatch.setattr(make_loras, "FaceAnalyzer", Finds)
    make(one_block_base, library, "--split", "test", "--people", "2")
    make(one_block_base, library, "--split", "test", "--people", "2", "--reference")
    many, one = load_library(library, "test"), load_library(library, "test_reference")
    assert one.people.tolist() == [0, 1]
    assert (one.flat.abs().amax(dim=1) > 0).all() and not torch.equal(one.flat, many.flat)
    with pytest.raises(CheckpointError, match="other settings"):
        make(one_block_base, library, "--split", "test", "--people", "2", "--reference", "--steps", "4")
    options = make_loras.parse(["--reference", "--photos", str(library)])
    with pytest.raises(DiffLoRAError, match="rendered people"):
        make_loras.open_people(options)


def test_training_starts_from_what_a_checkpoint_predicts(tmp_path):
    model, base = DiffLoRA.load(), BaseModel.load(world.BASE_MODEL)
    people = RenderedPeople("validation", 4)
    predicted = model.generate_weights(
        make_loras.first_features(face_models(model), people, [0, 1], PHOTO_PX)
    )
    folder, start = tmp_path / "started", ["--start", str(EMBEDDED_CHECKPOINT), "--split", "validation"]
    few = "--people 2 --pictures 4 --steps 1 --pictures-per-step 1 --learning-rate 1e-4".split()

    def run(*more):
        options = make_loras.parse([*few, *start, "--out", str(folder), *more])
        make_loras.run(base, people, 2, options)

    run()
    made = load_library(folder, "validation")
    assert all(torch.equal(made.shared_down[name], down) for name, down in model.shared_down.items())
    moved = (made.flat - predicted).abs()
    assert 0 < moved.max() < 2e-4  # one step of Adam
    assert (predicted[0] - predicted[1]).abs().max() > 0.01
    with pytest.raises(CheckpointError, match="other settings"):  # not from zero in the same folder
        run("--learning-rate", "2e-4")
    folder = tmp_path / "rank"
    with pytest.raises(CheckpointError, match="give --targets and --rank"):
        run("--rank", "2")


def test_training_for_likeness_makes_other_loras_that_look_more_alike(tmp_path):
    base, people = BaseModel.load(world.BASE_MODEL), RenderedPeople("validation", 4)
    few = "--people 2 --split validation --pictures 4 --steps 6 --pictures-per-step 2 --learning-rate 0.01"

    def run(weight):
        words = [*few.split(), "--start", str(EMBEDDED_CHECKPOINT), "--identity-weight", weight]
        options = make_loras.parse([*words, "--out", str(tmp_path / weight)])
        make_loras.run(base, people, 2, options)
        return load_library(tmp_path / weight, "validation")

    plain, alike = run("0"), run("5")
    assert "identity_weight" not in read_config(tmp_path / "0")  # libraries of before are gone on with
    analyzer, config = FaceAnalyzer(world.FACE_PACK), read_config(tmp_path / "5")
    assert config["identity_weight"] == 5
    assert config["identity_recogniser"] == digest_of(analyzer.recogniser_file)
    assert "portrait_recogniser" not in config
    pictures, latents, prompts = make_loras.training_pictures(base, people, [0, 1])
    recogniser = OnnxNetwork(analyzer.recogniser_file)
    without, both = (IdentityLoss.of([View(recogniser, weight)], analyzer, pictures) for weight in (0.0, 1.0))
    config = LoraTrainingConfig(pictures_per_step=4)
    source = common_batches(base, latents, prompts, config, torch.Generator().manual_seed(9))
    batches = [next(source) for _ in range(6)]

    def unlikeness(library):
        with torch.no_grad(), batched_lora(base.denoiser, library.layout, library.flat, library.shared_down):
            return float(sum((both(base, batch) - without(base, batch)).mean() for batch in batches))

    assert unlikeness(alike) < 0.95 * unlikeness(plain)


def test_a_library_like_a_checkpoint_has_its_down(one_block_base, library, tmp_path):
    given = {name: down * 2 for name, down in load_library(library).shared_down.items()}
    layout = load_library(library).layout
    down = make_loras.prepare_shared_down(
        tmp_path, one_block_base, layout, RenderedPeople("train", 4), make_loras.LibraryConfig(), 0, given
    )
    again = make_loras.prepare_shared_down(
        tmp_path, one_block_base, layout, RenderedPeople("train", 4), make_loras.LibraryConfig(), 0
    )
    for found in (down, again):  # and it stays the library's
        assert all(torch.equal(found[name], factor) for name, factor in given.items())
    options = make_loras.parse(["--like", str(EMBEDDED_CHECKPOINT)])
    with pytest.raises(CheckpointError, match="give --targets and --rank"):
        make_loras.given_down(options, layout, None)
    own = load_checkpoint(EMBEDDED_CHECKPOINT)
    given = make_loras.given_down(options, own.layout, None)
    assert all(torch.equal(given[name], factor) for name, factor in own.shared_down.items())


def test_batch_size_and_workers_do_not_change_the_loras(one_block_base, library, tmp_path):
    make(one_block_base, tmp_path / "alone", "--batch", "1", "--worker", "1/2")
    make(one_block_base, tmp_path / "alone", "--batch", "1", "--worker", "0/2")
    alone, together = load_library(tmp_path / "alone"), load_library(library)
    assert torch.equal(alone.people, together.people)
    distance = (alone.flat - together.flat).norm(dim=1) / together.flat.norm(dim=1)
    assert distance.max() < 1e-3


def test_kill_loses_only_the_shard_in_flight(one_block_base, library, monkeypatch):
    whole = load_library(library)
    shards = sorted(library.glob("train/shard-*"))
    kept = shards[0].stat().st_mtime_ns
    for shard in shards[1:]:
        shard.unlink()
    train = make_loras.train_loras

    def train_then_die(*positional, **named):
        if len(list(library.glob("train/shard-*"))) == 2:
            raise KeyboardInterrupt
        return train(*positional, **named)

    monkeypatch.setattr(make_loras, "train_loras", train_then_die)
    with pytest.raises(KeyboardInterrupt):
        make(one_block_base, library)
    assert [path.name for path in sorted(library.glob("train/*.safetensors"))] == [s.name for s in shards[:2]]
    monkeypatch.setattr(make_loras, "train_loras", train)
    make(one_block_base, library)
    assert torch.equal(load_library(library).flat, whole.flat)
    assert shards[0].stat().st_mtime_ns == kept


def test_more_people_complete_the_last_shard(one_block_base, library):
    before = load_library(library)
    make(one_block_base, library, "--people", "6")
    after = load_library(library)
    assert after.people.tolist() == list(range(6))
    torch.testing.assert_close(after.flat[:5], before.flat, atol=1e-4, rtol=1e-2)


def test_fewer_people_unmake_nobody(one_block_base, library):
    before = load_library(library)
    make(one_block_base, library, "--people", "3")  # one of the second shard's two
    after = load_library(library)
    assert torch.equal(after.people, before.people) and torch.equal(after.flat, before.flat)


@pytest.mark.parametrize("change", [("--steps", "4"), ("--rank", "3"), ("--seed", "1"), ("--pictures", "5")])
def test_other_settings_are_refused(one_block_base, library, change):
    with pytest.raises(CheckpointError, match="other settings"):
        make(one_block_base, library, *change)


def test_another_base_model_is_refused(one_block_base, library):
    other = type(one_block_base)(one_block_base.denoiser, one_block_base.alphas_cumprod, fingerprint="f" * 16)
    with pytest.raises(CheckpointError, match="base_model_fingerprint"):
        make(other, library)


def test_learned_down_does_not_depend_on_the_split(one_block_base, tmp_path):
    for split in ("train", "test"):
        make(
            one_block_base,
            tmp_path / split,
            *f"--down learned --down-people 2 --down-steps 5 --split {split}".split(),
        )
    downs = [load_library(tmp_path / split, split).shared_down for split in ("train", "test")]
    random = make_loras.init_shared_down(load_library(tmp_path / "train").layout, 0)
    for name in random:
        assert torch.equal(downs[0][name], downs[1][name])
    assert any(not torch.allclose(downs[0][name], random[name], atol=1e-5) for name in random)


def test_folders_of_photos(one_block_base, tmp_path):
    pictures, _ = RenderedPeople("train", 3).pictures([0, 1], 48)
    from PIL import Image

    for person, own in zip(("ann", "bob"), pictures, strict=True):
        (tmp_path / "photos" / person).mkdir(parents=True)
        for k, picture in enumerate(own[: 3 if person == "ann" else 1]):
            pixels = ((picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(tmp_path / "photos" / person / f"{k}.png")
    (tmp_path / "photos" / "ann" / "1.txt").write_text("ann in the rain\n", encoding="utf-8")
    folders = PhotoFolders(tmp_path / "photos", 3)
    loaded, captions = folders.pictures([0, 1], 48)
    torch.testing.assert_close(loaded[0], pictures[0], atol=0.01, rtol=0)  # 8 bits
    assert captions[0] == ["a photo of a person", "ann in the rain", "a photo of a person"]
    assert torch.equal(loaded[1, 0], loaded[1, 2])  # one photo, used again
    make(one_block_base, tmp_path / "library", "--photos", str(tmp_path / "photos"))
    assert load_library(tmp_path / "library").people.tolist() == [0, 1]
    (tmp_path / "photos" / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no photos"):
        PhotoFolders(tmp_path / "photos", 3)


def test_the_last_pictures_of_rendered_people_are_in_other_styles(tmp_path):
    colour, styled = (RenderedPeople("train", 8, seed=3, styled=share) for share in (0.0, 0.5))
    assert styled.scenes().style.tolist() == [0, 0, 0, 0, 1, 2, 1, 2]
    assert "styled" not in colour.description()  # libraries of before are gone on with
    assert styled.description()["styled"] == 0.5
    (photos, words), (pictures, prompts) = (people.pictures([0], 32) for people in (colour, styled))
    assert torch.equal(pictures[:, :4], photos[:, :4]) and prompts[0][:4] == words[0][:4]
    greyness = (pictures[0].amax(dim=1) - pictures[0].amin(dim=1)).amax(dim=(1, 2))  # (8,)
    assert greyness[[5, 7]].max() < 0.11 < greyness[:4].min()  # sketches on yellowish paper
    assert [words.rpartition(", ")[2] for words in prompts[0][4:]] == ["sepia", "pencil sketch"] * 2
    options = make_loras.parse(["--photos", str(tmp_path), "--styled", "0.3"])
    with pytest.raises(DiffLoRAError, match="put such pictures into"):
        make_loras.open_people(options)


def test_worker_names():
    assert make_loras.parse_worker("1/2") == (1, 2)
    for wrong in ("2/2", "1", "a/b", "-1/2"):
        with pytest.raises(argparse.ArgumentTypeError):
            make_loras.parse_worker(wrong)

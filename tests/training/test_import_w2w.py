"""weights2weights' format against its published description, and the whole recipe on a narrow SD 1.5."""

import functools
import json
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from difflora.base_model import BaseModel, denoiser_file, file_fingerprint
from difflora.checkpoint import load_checkpoint
from difflora.errors import CheckpointError, LayoutError, PhotoError
from difflora.files import load_safetensors
from difflora.lora import Lora
from training import import_w2w, train_dit, train_lae
from training.common import read_config
from training.lora_library import load_library
from training.w2w_tables import Identity

# Published: the block starts of the flat vector, and d of each block; 7 d + 768 numbers in a block.
STARTS = (
    0,
    3008,
    6016,
    11264,
    16512,
    26240,
    35968,
    45696,
    55424,
    65152,
    74880,
    80128,
    85376,
    90624,
    93632,
    96640,
)
WIDTHS = (320, 320, 640, 640, 1280, 1280, 1280, 1280, 1280, 1280, 640, 640, 640, 320, 320, 320)
TOTAL = 99_648
ROWS = 260


@functools.cache
def sd15_shapes():
    """Names and shapes of the whole U-Net of SD 1.5 (diffusers' defaults but for the prompts' width)."""
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(cross_attention_dim=768)
    return {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}


def sparse_safetensors(path, shapes):
    """A file of zeros in half precision that takes no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@dataclass(frozen=True)
class Source:
    folder: Path
    weights: torch.Tensor

    def arguments(self, **changes):
        options = {
            "weights": self.folder / "all_weights.pt",
            "identities": self.folder / "identities.csv",
            "photos": self.folder / "photos",
            "base": self.folder / "base",
            "out": self.folder / "library",
            "batch": 100,
        } | changes
        return [
            part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))
        ]


def write_source(folder, weights, names):
    """Weights and a table that names the rows; photos are the caller's."""
    torch.save(weights, folder / "all_weights.pt")
    lines = [",Male,identity", *(f"{name},1,{number}" for number, name in enumerate(names))]
    (folder / "identities.csv").write_text("\n".join(lines) + "\n")
    return Source(folder, weights)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """260 rows of the published format: one start that is shared, and what each row learned."""
    folder = tmp_path_factory.mktemp("w2w")
    generator = torch.Generator().manual_seed(0)
    weights = 0.005 * torch.randn(ROWS, TOTAL, generator=generator)
    weights += 0.02 * torch.randn(TOTAL, generator=generator)
    sparse_safetensors(folder / "base" / "unet" / "diffusion_pytorch_model.safetensors", sd15_shapes())
    names = [f"{number:06d}.jpg" if number % 2 else str(number) for number in range(ROWS)]
    for name in names[10:]:  # ten have no photos
        (folder / "photos" / Path(name).stem).mkdir(parents=True)
        (folder / "photos" / Path(name).stem / "0.png").touch()
    return write_source(folder, weights, names)


def test_layout_is_the_published_one():
    layout = import_w2w.w2w_layout(sd15_shapes())
    assert layout.num_parameters == TOTAL and len(layout.tensors) == 128
    assert (layout.rank, layout.scale, layout.train_down) == (1, 27.0, True)
    blocks = layout.tensors[::8]
    assert tuple(spec.start for spec in blocks) == STARTS
    assert tuple(spec.shape for spec in blocks) == tuple((1, width) for width in WIDTHS)
    assert blocks[6].module == "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    attn2_v = layout.tensors[6]
    assert attn2_v.module.endswith("attn2.to_v") and attn2_v.shape == (1, 768)


def raw_change(row, block, place):
    """delta-W of the place-th projection of a block, cut out of a row by the published description alone."""
    start, width = STARTS[block] + 2 * WIDTHS[block] * place, WIDTHS[block]
    read = 768 if place == 3 else width
    down, up = row[start : start + read], row[start + read : start + read + width]
    return 27.0 * torch.outer(up, down)


def test_import_resumes_and_an_exported_row_is_the_published_change(source, capsys):
    import_w2w.main(source.arguments())
    assert "10 of 260 identities have no folder" in capsys.readouterr().out
    library = load_library(source.folder / "library", mapped=True)
    folders = sorted(path.name for path in (source.folder / "photos").iterdir())
    names = [folders[number] for number in library.people.tolist()]
    assert names == [f"{number:06d}" if number % 2 else str(number) for number in range(10, ROWS)]
    for row in (0, 99, 100, 249):
        assert torch.equal(library.flat[torch.tensor([row])][0], source.weights[10 + row].half())

    lora = Lora.from_flat(library.layout, library.flat[torch.tensor([3])][0].float(), None)
    lora.save(source.folder / "peft" / "adapter_model.safetensors", torch.float32, key_style="peft")
    tensors, _ = load_safetensors(source.folder / "peft" / "adapter_model.safetensors")
    settings = json.loads((source.folder / "peft" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (1, 27) and len(tensors) == 128
    for block, path in (
        (0, "down_blocks.0.attentions.0"),
        (6, "mid_block.attentions.0"),
        (15, "up_blocks.3.attentions.2"),
    ):
        for place, projection in enumerate(("attn1.to_q", "attn1.to_v", "attn2.to_q", "attn2.to_v")):
            key = f"base_model.model.{path}.transformer_blocks.0.{projection}.lora_"
            change = 27.0 * tensors[f"{key}B.weight"] @ tensors[f"{key}A.weight"]
            expected = raw_change(source.weights[13], block, place)
            # two factors rounded to float16: 2^-11 each
            torch.testing.assert_close(change, expected, rtol=1.1e-3, atol=27 * 6e-8)

    shards = sorted((source.folder / "library" / "train").glob("shard-*"))
    assert [load_safetensors(path)[0]["people"].numel() for path in shards] == [100, 100, 50]
    times = [path.stat().st_mtime_ns for path in shards]
    shards[1].unlink()
    import_w2w.main(source.arguments())
    assert "100 LoRAs written, 250 in all" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns == time for path, time in zip(shards, times, strict=True)] == [
        True,
        False,
        True,
    ]
    (source.folder / "photos" / "someone").mkdir()
    (source.folder / "photos" / "someone" / "0.png").touch()
    try:
        with pytest.raises(CheckpointError, match=r"people\.photos was"):
            import_w2w.main(source.arguments())
    finally:
        shutil.rmtree(source.folder / "photos" / "someone")


def test_one_initialisation_is_told_from_several(source, capsys):
    layout = import_w2w.w2w_layout(sd15_shapes())
    # cosine of a + n and a + n' with |n| = a / 4: 1 / (1 + 1/16)
    assert import_w2w.start_cosine(source.weights[1:20], source.weights[0], layout) == pytest.approx(
        16 / 17, abs=0.01
    )
    import_w2w.say_start(0.94)
    import_w2w.say_start(import_w2w.start_cosine(torch.randn(8, TOTAL), torch.randn(TOTAL), layout))
    told, warned = capsys.readouterr().out.splitlines()
    assert "nothing to align" in told and warned.startswith("warning")


def test_what_does_not_fit_is_refused(source, tmp_path):
    with pytest.raises(LayoutError, match=r"for SD 1\.5, but the base model is SDXL"):
        import_w2w.w2w_layout({"mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": (1280, 2048)})
    small = tmp_path / "small.pt"
    torch.save(source.weights[:5, :100].clone(), small)
    with pytest.raises(CheckpointError, match="matrix of 99648 columns"):
        import_w2w.main(source.arguments(weights=small, out=tmp_path / "out"))
    torch.save(source.weights[:5].clone(), small)
    with pytest.raises(CheckpointError, match=r"260 rows, .* 5"):
        import_w2w.main(source.arguments(weights=small, out=tmp_path / "out"))
    layout = import_w2w.w2w_layout(sd15_shapes())
    damaged = source.weights[:3].clone()
    damaged[1, 7] = 1e6  # more than float16 holds
    torch.save(damaged, small)
    with pytest.raises(CheckpointError, match="row 1 is not finite"):
        import_w2w.convert(small, [import_w2w.Row(number, number) for number in range(3)], layout)
    with pytest.raises(PhotoError, match=r"has '4', the photos 'ann'"):
        import_w2w.choose_rows([Identity("4", "4")], [Path("ann")])
    with pytest.raises(CheckpointError, match="has no unet"):
        import_w2w.main(source.arguments(base=tmp_path, out=tmp_path / "out"))


def test_rows_of_one_person_stand_together():
    people = [Identity(name, person) for name, person in (("a", "1"), ("b", "2"), ("c", "1"), ("d", "3"))]
    rows = import_w2w.choose_rows(people, [Path(name) for name in "dcba"])
    assert [row.number for row in rows] == [0, 2, 1, 3]
    assert [row.folder for row in rows] == [3, 1, 2, 0]
    assert [row.number for row in import_w2w.choose_rows(people, [Path("b"), Path("c")], limit=1)] == [1]


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A narrow SD 1.5 that draws with the embedded world's encoders, 24 people with rendered photos."""
    diffusers = pytest.importorskip("diffusers")
    from PIL import Image

    from difflora.synthetic import world
    from training.pictures import RenderedPeople

    folder = tmp_path_factory.mktemp("narrow")
    shutil.copytree(world.BASE_MODEL, folder / "base", ignore=shutil.ignore_patterns("unet"))
    channels = json.loads((world.BASE_MODEL / "unet" / "config.json").read_text())["in_channels"]
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16, 16, 16),
        norm_num_groups=8,
        cross_attention_dim=96,
        attention_head_dim=2,
    )
    unet.save_pretrained(folder / "base" / "unet")
    layout = import_w2w.w2w_layout({name: tensor.shape for name, tensor in unet.state_dict().items()})
    pictures, _ = RenderedPeople("train", 2).pictures(list(range(24)), 128)
    for person, own in enumerate(pictures):
        (folder / "photos" / f"p{person}").mkdir(parents=True)
        for number, picture in enumerate(own):
            pixels = ((picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(folder / "photos" / f"p{person}" / f"{number}.png")
    weights = 0.02 * torch.randn(layout.num_parameters) + 0.005 * torch.randn(24, layout.num_parameters)
    return write_source(folder, weights, [f"p{person}" for person in range(24)])


def test_fingerprint_of_the_file_is_the_models(narrow):
    base = narrow.folder / "base"
    assert file_fingerprint(denoiser_file(base)) == BaseModel.load(base).fingerprint


def test_the_whole_recipe(narrow, monkeypatch):
    monkeypatch.chdir(narrow.folder)
    import_w2w.main(narrow.arguments(batch=10))
    assert read_config("library")["people"]["source"] == "photos"
    train_lae.main("--library library --out lae --preset tiny --num-steps 4".split())
    recipe = (
        "--library library --lae lae/lae.safetensors --out dit --photos photos --base base --preset tiny "
        "--image-loss-weight 0 --num-steps 3 --photos-per-person 2 --validation-people 2 "
        "--pictures-per-person 1"
    ).split()
    recipe += ["--caption", "sks person"]
    monkeypatch.setattr("training.recommending.STRENGTHS", (1.0,))  # twelve draw longer, not more
    train_dit.main(recipe)
    checkpoint = load_checkpoint("dit/difflora.safetensors")
    assert checkpoint.layout.scale == 27 and checkpoint.shared_down is None
    assert checkpoint.base_sketch is not None
    cached, _ = load_safetensors(next(Path("runs/photos/folders").glob("photos-*")))
    assert cached["image_latents"].numel() == 0 and cached["valid"].float().mean() > 0.8
    drawn, texts = load_safetensors(next(Path("runs/photos/validation").glob("photos-*")))
    assert drawn["image_latents"].numel() > 0
    assert json.loads(texts["prompts"]) == [["sks person"] * 2] * 2  # what the LoRAs answer to
    (Path("photos") / "p0" / "1.png").unlink()
    with pytest.raises(CheckpointError, match="does not hold the photos"):
        train_dit.main(recipe)

"""The base model's folder: what transformers 5 writes, transformers 4 has to read too."""

import json

import torch
from safetensors.torch import load_file

from training.world_pipeline import (
    BaseModelConfig,
    PatchAutoencoder,
    build_denoiser,
    build_text_encoder,
    build_tokenizer,
    extend_tokenizer,
    save_pipeline,
    serve_older_transformers,
)

WORDS = "a photo of a person, wearing sunglasses, blond hair"
SIZES = BaseModelConfig(channels=(32, 64), text_width=16, text_layers=1)


def test_folder_serves_older_transformers(tmp_path):
    tokenizer = build_tokenizer(tmp_path / "tokenizer")
    text_encoder = build_text_encoder(SIZES, tokenizer)
    autoencoder = PatchAutoencoder(latent_channels=SIZES.latent_channels)
    folder = tmp_path / "base_model"
    save_pipeline(folder, build_denoiser(SIZES), text_encoder, tokenizer, autoencoder)

    assert (
        json.loads((folder / "tokenizer" / "vocab.json").read_text(encoding="utf-8")) == tokenizer.get_vocab()
    )
    for name in ("vocab.json", "merges.txt"):  # the files that the tokenizer was made from
        assert (folder / "tokenizer" / name).read_text(encoding="utf-8").strip() == (
            tmp_path / "tokenizer" / name
        ).read_text(encoding="utf-8").strip()
    weights = load_file(folder / "text_encoder" / "model.safetensors")
    assert all(name.startswith("text_model.") for name in weights)

    serve_older_transformers(folder)
    assert load_file(folder / "text_encoder" / "model.safetensors").keys() == weights.keys()
    loaded = type(text_encoder).from_pretrained(folder / "text_encoder")  # and the present version still does
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected = text_encoder.half().float()(ids).last_hidden_state
        torch.testing.assert_close(loaded.float()(ids).last_hidden_state, expected, atol=1e-3, rtol=0)


def test_a_tokenizer_learns_words_and_forgets_none(tmp_path, monkeypatch):
    monkeypatch.setattr("training.world_pipeline.vocabulary", lambda: WORDS.split(", "))
    first = build_tokenizer(tmp_path / "first")
    assert len(first.tokenize("sepia")) > 1
    monkeypatch.setattr(
        "training.world_pipeline.vocabulary", lambda: ["sepia", "pencil sketch", *WORDS.split(", ")]
    )
    extended = extend_tokenizer(tmp_path / "first", tmp_path / "extended")
    assert extended.tokenize("pencil sketch, sepia") == ["pencil</w>", "sketch</w>", ",</w>", "sepia</w>"]
    assert extended(WORDS).input_ids == first(WORDS).input_ids
    assert max(extended.get_vocab().values()) == len(extended) - 1
    again = extend_tokenizer(tmp_path / "first", tmp_path / "extended")  # a resumed run reads it
    assert again.get_vocab() == extended.get_vocab()

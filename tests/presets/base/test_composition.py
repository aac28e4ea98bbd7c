"""Where the parts of a base are found: by names of files alone, on disks and in listings."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from presets.base.composition import ENCODER_REPO, VAE_REPO, Composition, NamedBase, compose
from presets.base.layouts import PARTS
from presets.base.vocabulary import mismatch, vocabulary_size

EXPERTS = [
    f"{part}/{name}"
    for part in ("transformer", "transformer_2")
    for name in ("config.json", "diffusion_pytorch_model.safetensors")
]
ENCODER, TOKENIZER = ["text_encoder/config.json", "text_encoder/model.safetensors"], ["tokenizer/tokenizer.json"]
VAE = ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
COMFY = [
    "diffusion_models/wan2.2_i2v_high_noise_14B_fp16.safetensors",
    "diffusion_models/wan2.2_i2v_low_noise_14B_fp16.safetensors",
]


def write(folder: Path, names: Iterable[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            save_file({"x": np.zeros(1)}, folder / name)
        else:
            (folder / name).write_text("{}")
    return folder


def put(tmp_path: Path, listings: dict[str, list[str]] | None = None, **named: str) -> Composition:
    return compose(NamedBase(**{"path": "base", **named}), tmp_path, cache=tmp_path / "hub", listings=listings or {})


def spots(composed: Composition) -> dict[str, tuple[str, str]]:
    """Part -> (source, place within it)."""
    return {part: (place.source, place.spot.path if place.spot else "?") for part, place in composed.places.items()}


def test_parts_beside_the_experts_come_first(tmp_path):
    write(tmp_path / "base", [*EXPERTS, *ENCODER, *TOKENIZER, *VAE])
    composed = put(tmp_path)
    assert spots(composed) == {part: ("base", part) for part in PARTS} and composed.local and composed.to_ask == []


def test_what_is_nowhere_comes_from_the_known_repositories(tmp_path):
    write(tmp_path / "base", EXPERTS)
    composed = put(tmp_path)
    assert composed.to_ask == [VAE_REPO, ENCODER_REPO] and not composed.local and composed.problems == []
    composed = put(
        tmp_path,
        {
            VAE_REPO: ["README.md", "config.json", "diffusion_pytorch_model.safetensors"],
            ENCODER_REPO: [*ENCODER, *TOKENIZER],
        },
    )
    assert spots(composed)["vae"] == (VAE_REPO, "") and spots(composed)["tokenizer"] == (ENCODER_REPO, "tokenizer")


def test_a_tokenizer_without_its_encoder_is_not_taken(tmp_path):
    write(tmp_path / "base", [*EXPERTS, *TOKENIZER, *VAE])
    assert put(tmp_path).places["tokenizer"].source == ENCODER_REPO


def test_the_experts_repository_is_asked_before_the_known_ones(tmp_path):
    """It may hold the other parts as well."""
    composed = put(tmp_path, path="owner/wan")
    assert composed.to_ask == ["owner/wan"] and composed.unsure
    assert put(tmp_path, {"owner/wan": [*EXPERTS, *VAE]}, path="owner/wan").to_ask == ["owner/wan", ENCODER_REPO]
    named = put(tmp_path, path="owner/wan", vae="owner/vae", text_encoder="owner/text")
    assert named.to_ask == ["owner/wan", "owner/vae", "owner/text"]


def test_a_repository_with_comfyuis_files(tmp_path):
    """As a layout of its own, whoever holds it."""
    composed = put(tmp_path, {"owner/wan": [*COMFY, "vae/wan_2.1_vae.safetensors"]}, path="owner/wan")
    assert spots(composed)["transformer"] == ("owner/wan", COMFY[0]) and spots(composed)["vae"] == (
        "owner/wan",
        "vae/wan_2.1_vae.safetensors",
    )


@pytest.mark.parametrize("mixed", [[*EXPERTS, "vae/wan_2.1_vae.safetensors"], [*COMFY, *VAE]])
def test_layouts_may_be_mixed_in_a_folder(tmp_path, mixed):
    write(tmp_path / "base", mixed)
    composed = put(tmp_path)
    assert (
        composed.problems == []
        and composed.places["vae"].source == "base"
        and composed.places["transformer_2"].at is not None
    )


def test_several_files_that_may_be_the_vae(tmp_path):
    write(tmp_path / "base", [*COMFY, "vae/wan_2.1_vae.safetensors", "vae/wan_2.1_vae_bf16.safetensors"])
    (problem,) = put(tmp_path).problems
    assert (
        problem.field == "model.vae"
        and "several files for the VAE" in problem.message
        and "wan_2.1_vae_bf16" in problem.message
    )
    assert put(tmp_path, vae="base/vae/wan_2.1_vae.safetensors").problems == []


def test_a_named_file_may_be_a_link(tmp_path):
    """As in the Hub's cache, where the content has another name."""
    write(tmp_path / "base", EXPERTS)
    blob = tmp_path / "blobs" / "f00"
    blob.parent.mkdir()
    save_file({"x": np.zeros(1)}, blob)
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "vae.safetensors").symlink_to("../blobs/f00")
    composed = put(tmp_path, vae="snapshot/vae.safetensors")
    assert composed.problems == [] and composed.places["vae"].at == tmp_path / "snapshot" / "vae.safetensors"


@pytest.mark.parametrize(
    ("files", "encoder", "tokenizer"),
    [
        ([*ENCODER, *TOKENIZER], "given", "tokenizer"),
        ([*ENCODER, *TOKENIZER], "given/text_encoder", "tokenizer"),
        ([*ENCODER, *TOKENIZER], "given/text_encoder/model.safetensors", "tokenizer"),
        (["config.json", "model.safetensors", "spiece.model"], "given", ""),
        (["umt5.safetensors", "tokenizer.json"], "given/umt5.safetensors", ""),
        ([*ENCODER, "text_encoder/tokenizer.json"], "given", "text_encoder"),
    ],
)
def test_a_tokenizer_is_found_beside_its_encoder(tmp_path, files, encoder, tokenizer):
    write(tmp_path / "base", [*EXPERTS, *VAE])
    write(tmp_path / "given", files)
    composed = put(tmp_path, text_encoder=encoder)
    assert (
        composed.problems == [] and composed.local and composed.places["tokenizer"].at == tmp_path / "given" / tokenizer
    )


def test_a_named_source_without_the_part(tmp_path):
    write(tmp_path / "base", EXPERTS)
    write(tmp_path / "given", ["config.json"])
    composed = put(tmp_path, vae="given")
    assert [(p.field, p.code) for p in composed.problems] == [
        ("model.vae", "model-incomplete")
    ] and composed.to_ask == []
    composed = put(tmp_path, {"owner/vae": ["README.md"]}, vae="owner/vae")
    assert [p.field for p in composed.problems] == [
        "model.vae"
    ] and "the repository owner/vae does not hold the VAE" in composed.problems[0].message


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/owner/wan",
        "https://huggingface.co/owner/wan/tree/main",
        "http://hf.co/owner/wan/",
        "huggingface.co/owner/wan",
        "hf://owner/wan",
        "owner/wan/",
    ],
)
def test_the_address_of_a_repository_is_no_id_and_tells_it(tmp_path, text):
    (problem,) = put(tmp_path, path=text).problems
    assert problem.code == "model-missing" and problem.fix == "Give the Hub id alone: owner/wan"


@pytest.mark.parametrize(
    "text", ["owner/wan/transformer", "./owner/wan", "https://example.com/owner/wan", "models/wan 2.2", "wan"]
)
def test_what_is_no_address_of_a_repository_is_taken_for_a_path(tmp_path, text):
    (problem,) = put(tmp_path, path=text).problems
    assert problem.code == "model-missing" and "such as owner/name" in problem.fix


def test_the_folder_of_one_expert_is_not_the_base(tmp_path):
    write(tmp_path / "base", EXPERTS)
    (problem,) = put(tmp_path, path="base/transformer_2").problems
    assert "is one expert" in problem.message and problem.fix == f"Give the folder around it: {tmp_path / 'base'}"


# Vocabularies


def spiece(pieces: int) -> bytes:
    """A SentencePiece model's bytes: its pieces, and a trainer's settings behind them."""
    return b"".join(b"\x0a\x05\x0a\x03" + f"{i:03}".encode() for i in range(pieces)) + b"\x12\x02\x08\x01"


def test_how_many_pieces_a_tokenizer_knows(tmp_path):
    assert vocabulary_size(tmp_path) is None
    (tmp_path / "spiece.model").write_bytes(spiece(300))
    assert vocabulary_size(tmp_path) == 300
    tokenizer = {
        "model": {"type": "Unigram", "vocab": [["a", -1.5], ["b", -2]]},
        "added_tokens": [{"id": 4, "content": "<x>"}],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert vocabulary_size(tmp_path) == 5
    (tmp_path / "tokenizer.json").write_text("{")
    assert vocabulary_size(tmp_path) is None
    save_file({"spiece_model": np.frombuffer(spiece(7), np.uint8)}, tmp_path / "umt5.safetensors")
    assert vocabulary_size(tmp_path / "umt5.safetensors") == 7


@pytest.mark.parametrize(
    ("pieces", "rows", "fits"),
    [
        (256_300, 256_384, True),
        (120, 120, True),
        (32_100, 256_384, False),
        (250_100, 256_384, False),
        (256_384, 32_128, False),
    ],
)
def test_which_encoder_a_tokenizer_belongs_to(pieces, rows, fits):
    assert (mismatch(pieces, rows) == "") is fits

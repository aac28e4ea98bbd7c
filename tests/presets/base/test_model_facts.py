import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from presets.base import model_facts
from presets.base.composition import NamedBase
from presets.base.model_facts import ModelFacts
from presets.job.hub_id import looks_like_hub_id

EXPERTS = ("transformer", "transformer_2")
NOT_HERE = ModelFacts(
    path="owner/wan",
    local=False,
    absent=[
        "the experts, the VAE, the text encoder, the tokenizer from owner/wan (the VAE, the text encoder, the tokenizer"
        " from ai-toolkit/wan2.1-vae and ai-toolkit/umt5_xxl_encoder, if that lacks them)"
    ],
)
CONFIG = {
    "in_channels": 36,
    "out_channels": 16,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "ffn_dim": 64,
    "image_dim": None,
}


def read_model(path: str, base: Path, *, cache: Path | None = None, **named: Any) -> ModelFacts:
    return model_facts.read_model(NamedBase(path=path, **named), base, cache=cache)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def tensors(channels: int = 36) -> dict[str, np.ndarray]:
    return {
        "patch_embedding.weight": np.zeros((32, channels, 1, 2, 2), np.float16),
        "blocks.0.attn1.to_q.weight": np.zeros((32, 32), np.float16),
        "blocks.0.norm.weight": np.ones(32, np.float32),
    }


def write_model(folder: Path) -> Path:
    """A folder laid out as diffusers lays out Wan 2.2 I2V A14B, its weights a few kilobytes."""
    write_json(folder / "model_index.json", {"_class_name": "WanImageToVideoPipeline", "boundary_ratio": 0.9})
    for expert in EXPERTS:
        write_json(folder / expert / "config.json", CONFIG)
        save_file(tensors(), folder / expert / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    write_json(folder / "vae" / "config.json", {"z_dim": 16})
    save_file({"w": np.zeros(10, np.float32)}, folder / "vae" / "diffusion_pytorch_model.safetensors")
    write_json(folder / "text_encoder" / "config.json", {"d_model": 32})
    shards = {"model-00001-of-00002.safetensors": "a", "model-00002-of-00002.safetensors": "b"}
    for shard, name in shards.items():
        save_file({name: np.zeros(6, np.float32)}, folder / "text_encoder" / shard)
    write_json(
        folder / "text_encoder" / "model.safetensors.index.json",
        {"weight_map": {name: shard for shard, name in shards.items()}},
    )
    write_json(folder / "tokenizer" / "tokenizer.json", {})
    write_json(folder / "scheduler" / "scheduler_config.json", {})
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "models" / "wan")


def one_problem(folder: Path, code: str) -> str:
    """The message of the only problem, which must have this code, name the model field and offer a fix."""
    problems = read_model(str(folder), Path("/")).problems
    assert [p.code for p in problems] == [code], problems
    assert problems[0].fix and problems[0].field.startswith("model.")
    return problems[0].message


def test_a_complete_model(folder: Path, tmp_path: Path) -> None:
    facts = read_model("models/wan", tmp_path)
    assert facts.problems == [] and facts.missing == [] and facts.local
    assert (facts.path, facts.folder) == ("models/wan", str(folder))
    assert (facts.in_channels, facts.out_channels, facts.num_layers, facts.width, facts.ffn, facts.boundary_ratio) == (
        36,
        16,
        2,
        32,
        64,
        0.9,
    )
    each = 32 * 36 * 4 + 32 * 32 + 32
    assert {e: facts.parts[e].parameters for e in EXPERTS} == dict.fromkeys(
        EXPERTS, each
    ) and facts.parameters == 2 * each
    assert facts.parts["transformer"].dtype == "F16" and facts.parts["text_encoder"].parameters == 12
    assert facts.size_bytes == sum(p.stat().st_size for p in folder.rglob("*.safetensors"))


def test_an_empty_config_is_a_config(folder: Path) -> None:
    for part in ("vae", "text_encoder"):
        write_json(folder / part / "config.json", {})
    assert read_model(str(folder), Path("/")).problems == []


def test_paths(folder: Path, tmp_path: Path) -> None:
    assert read_model(str(folder), Path("/nowhere")).problems == []
    assert read_model("./wan", tmp_path / "models").problems == []
    assert read_model("../models/wan", tmp_path / "models").problems == []


@pytest.mark.parametrize("expert", EXPERTS)
def test_one_expert_missing(folder: Path, expert: str) -> None:
    shutil.rmtree(folder / expert)
    message = one_problem(folder, "model-not-i2v")
    assert {"transformer": "high noise", "transformer_2": "low noise"}[
        expert
    ] in message and f"{expert}/config.json" in message


def test_text_to_video(folder: Path) -> None:
    for expert in EXPERTS:
        write_json(folder / expert / "config.json", {**CONFIG, "in_channels": 16})
        save_file(tensors(16), folder / expert / "diffusion_pytorch_model.safetensors")
    facts = read_model(str(folder), Path("/"))
    [problem] = facts.problems
    assert problem.code == "model-not-i2v" and facts.in_channels == 16
    assert (
        "both experts" in problem.message
        and "16 input channels" in problem.message
        and "text-to-video" in problem.message
    )


def test_weights_that_contradict_their_config(folder: Path) -> None:
    save_file(tensors(16), folder / "transformer_2" / "diffusion_pytorch_model.safetensors")
    message = one_problem(folder, "model-not-i2v")
    assert "low noise" in message and "16 input channels" in message


def test_config_that_contradicts_the_weights(folder: Path) -> None:
    write_json(folder / "transformer" / "config.json", {**CONFIG, "in_channels": 16})
    assert "in_channels 16" in one_problem(folder, "model-not-i2v")


def test_experts_of_two_models(folder: Path) -> None:
    write_json(folder / "transformer_2" / "config.json", {**CONFIG, "num_layers": 3})
    assert "differ" in one_problem(folder, "model-not-i2v")


@pytest.mark.parametrize("ratio", [None, "0.9", 0, 1.5, True])
def test_no_usable_boundary(folder: Path, ratio: Any) -> None:
    write_json(folder / "model_index.json", {"boundary_ratio": ratio})
    assert "boundary_ratio" in one_problem(folder, "model-no-boundary")
    facts = read_model(str(folder), Path("/"))
    assert (
        facts.boundary_ratio is None
        and facts.problems[0].set == {"model.boundary": 0.9}
        and facts.problems[0].severity == "error"
    )


def damaged(path: Path, how: str) -> None:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = next(n for n in header if n != "__metadata__")

    def with_header() -> bytes:
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + length :]

    if how == "cut":
        content = content[:-100]
    elif how == "cut in header":
        content = content[: 8 + length // 2]
    elif how == "empty":
        content = b""
    elif how == "text":
        content = b"<html>not found</html>" * 100
    elif how == "pointer":
        content = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n"
    elif how == "header is no JSON":
        content = content[:8] + b"x" * length + content[8 + length :]
    elif how == "too long":
        content += b"12345"
    elif how == "wrong shape":
        header[name]["shape"] = [1]
        content = with_header()
    elif how == "gap":
        header[name]["data_offsets"] = [n + 8 for n in header[name]["data_offsets"]]
        content = with_header()
    elif how == "no offsets":
        del header[name]["data_offsets"]
        content = with_header()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cut", "truncated: 100 of"),
        ("cut in header", "truncated inside its header"),
        ("empty", "empty (0 bytes)"),
        ("text", "no safetensors file"),
        ("pointer", "Git LFS pointer"),
        ("header is no JSON", "no valid JSON"),
        ("too long", "5 bytes longer"),
        ("wrong shape", "damaged header"),
        ("gap", "damaged header"),
        ("no offsets", "damaged header"),
    ],
)
def test_a_corrupt_shard_is_named(folder: Path, how: str, words: str) -> None:
    damaged(folder / "transformer_2" / "diffusion_pytorch_model.safetensors", how)
    message = one_problem(folder, "model-corrupt")
    assert "transformer_2/diffusion_pytorch_model.safetensors" in message and words in message


def test_a_corrupt_shard_of_an_indexed_part(folder: Path) -> None:
    damaged(folder / "text_encoder" / "model-00002-of-00002.safetensors", "gap")
    assert "text_encoder/model-00002-of-00002.safetensors" in one_problem(folder, "model-corrupt")


def test_an_index_that_names_what_is_not_there(folder: Path) -> None:
    shard = folder / "text_encoder" / "model-00002-of-00002.safetensors"
    save_file({"other": np.zeros(1, np.float32)}, shard)
    assert "shards do not hold: b (" in one_problem(folder, "model-corrupt")
    shard.unlink()
    assert "text_encoder/model-00002-of-00002.safetensors" in one_problem(folder, "model-incomplete")
    assert read_model(str(folder), Path("/")).missing == ["text_encoder/model-00002-of-00002.safetensors"]


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"weight_map": {}}', '{"weight_map": {"a": "../../x"}}', '{"weight_map": {"a": 1}}']
)
def test_a_corrupt_index(folder: Path, content: str) -> None:
    (folder / "text_encoder" / "model.safetensors.index.json").write_text(content)
    assert "text_encoder/model.safetensors.index.json" in one_problem(folder, "model-corrupt")


@pytest.mark.parametrize("name", ["model_index.json", "transformer/config.json"])
def test_a_corrupt_config(folder: Path, name: str) -> None:
    (folder / name).write_text("{")
    codes = [p.code for p in read_model(str(folder), Path("/")).problems]
    assert codes[0] == "model-corrupt" and set(codes) <= {"model-corrupt", "model-no-boundary"}


@pytest.mark.parametrize(
    "part",
    [
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
    ],
)
def test_missing_parts_are_named_in_one_problem(folder: Path, part: str) -> None:
    (folder / part).unlink()
    assert part in one_problem(folder, "model-incomplete")
    assert read_model(str(folder), Path("/")).missing == [part]


def test_folders_of_other_programs(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no file of weights (.safetensors, .gguf or .pth)" in one_problem(tmp_path / "empty", "model-incomplete")
    (tmp_path / "comfy").mkdir()
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "comfy" / "model_00001.safetensors")
    assert "found model_00001.safetensors" in one_problem(tmp_path / "comfy", "model-incomplete")
    [problem] = read_model(str(tmp_path / "comfy"), Path("/")).problems
    assert all(word in problem.fix for word in ("transformer_2", "high_noise_model", "ComfyUI", "GGUF"))
    assert "single file" in one_problem(tmp_path / "comfy" / "model_00001.safetensors", "model-missing")
    write_model(tmp_path / "around" / "wan")
    [problem] = read_model(str(tmp_path / "around"), Path("/")).problems
    assert problem.fix == f"Give the folder in it: {tmp_path / 'around' / 'wan'}"
    for path in (str(tmp_path / "gone"), "./gone", "a/b/c", "~/no/such/model"):
        [problem] = read_model(path, tmp_path).problems
        assert problem.code == "model-missing"


@pytest.mark.parametrize(
    ("path", "is_id"),
    [
        ("ai-toolkit/Wan2.2-I2V-A14B-Diffusers-bf16", True),
        ("a/b", True),
        ("a/b.c_d-e", True),
        ("name", False),
        ("/a/b", False),
        ("./a/b", False),
        ("../b", False),
        ("a/b/c", False),
        ("a/.b", False),
        ("a/b.", False),
        ("a--b/c", False),
        ("a/b..c", False),
        ("a/b.git", False),
        ("a/b c", False),
        ("a/é", False),
        ("a/" + "b" * 95, False),
        ("", False),
    ],
)
def test_hub_ids(path: str, is_id: bool) -> None:
    assert looks_like_hub_id(path) is is_id


def snapshot_of(cache: Path, repo: str) -> Path:
    """The folder of a cached repository's main revision, which holds nothing yet."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc123")
    (folder / "snapshots" / "abc123").mkdir(parents=True)
    return folder / "snapshots" / "abc123"


def test_a_hub_id_is_read_from_the_cache(tmp_path: Path) -> None:
    cache, base = tmp_path / "hub", tmp_path / "base"
    base.mkdir()
    assert read_model("owner/wan", base, cache=cache) == NOT_HERE

    snapshot = write_model(snapshot_of(cache, "owner/wan"))
    repo = snapshot.parent.parent
    blob = repo / "blobs" / "f00"
    blob.parent.mkdir()
    shard = snapshot / "transformer" / "diffusion_pytorch_model.safetensors"
    shard.rename(blob)
    shard.symlink_to(os.path.relpath(blob, shard.parent))  # as the cache keeps its files
    facts = read_model("owner/wan", base, cache=cache)
    assert facts.local and facts.problems == [] and facts.folder == str(snapshot) and facts.path == "owner/wan"

    damaged(blob, "cut")
    assert [p.code for p in read_model("owner/wan", base, cache=cache).problems] == ["model-corrupt"]
    blob.unlink()  # a download that was broken off will go on
    facts = read_model("owner/wan", base, cache=cache)
    assert not facts.local and facts.problems == [] and facts.absent == ["the high noise expert from owner/wan"]
    # which a job of the other does not need
    assert read_model("owner/wan", base, cache=cache, experts=("transformer_2",)).local

    write_model(base / "owner" / "wan")  # a folder of that name comes first
    assert read_model("owner/wan", base, cache=cache).folder == str(base / "owner" / "wan")


def test_reading_a_model_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from presets.base.composition import NamedBase; from"
        f" presets.base.model_facts import read_model; read_model(NamedBase(path={str(folder)!r}), Path('/')); a ="
        " 'huggingface_hub' in sys.modules; read_model(NamedBase(path='o/n'), Path('/')); print(a, [m for m in"
        " ('torch', 'transformers', 'diffusers', 'numpy') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False []"
    )


def by_link(one: Path, other: Path) -> None:
    other.unlink()
    other.symlink_to(one)


def by_hard_link(one: Path, other: Path) -> None:
    other.unlink()
    other.hardlink_to(one)


def by_linked_folder(one: Path, other: Path) -> None:
    shutil.rmtree(other.parent)
    other.parent.symlink_to(one.parent)


def by_copy(one: Path, other: Path) -> None:
    save_file(tensors() | {"blocks.0.ffn.net.0.proj.weight": np.ones((512, 2048), np.float16)}, one)
    shutil.copy(one, other)


@pytest.mark.parametrize("how", [by_link, by_hard_link, by_linked_folder, by_copy])
def test_one_file_is_not_both_experts(folder: Path, how: Callable[[Path, Path], None]) -> None:
    one, other = (folder / e / "diffusion_pytorch_model.safetensors" for e in EXPERTS)
    how(one, other)
    said = one_problem(folder, "model-experts-same")
    assert str(one) in said and str(other) in said and "two experts that differ" in said
    if how is by_copy:
        content = bytearray(other.read_bytes())
        content[len(content) // 2 : len(content) // 2 + 8192] = bytes(8192)
        other.write_bytes(content)
        assert read_model(str(folder), Path("/")).problems == []


def test_links_to_two_files_are_two_experts(folder: Path, tmp_path: Path) -> None:
    for expert in EXPERTS:
        file = folder / expert / "diffusion_pytorch_model.safetensors"
        file.symlink_to(file.rename(tmp_path / f"{expert}.safetensors"))
    assert read_model(str(folder), Path("/")).problems == []

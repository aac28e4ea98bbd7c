"""LoRAs merged into the base: what is packed is the merged weights, whichever precision and whatever the base is stored
in; what is not changed stays what it was, to the bit."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.adapters import lora
from engine.adapters.merge import MergedFile, Merges, merges_of_job
from engine.wan.block import LINEARS
from engine.wan.frozen_linear import unpack_weight
from engine.wan.quantize import pack
from engine.weights.load_expert import load_blocks, load_outer_modules
from engine.weights.model_files import ModelFiles, open_model_files
from engine.weights.weight_cache import cache_key
from presets.base.lora_file import read_lora
from presets.errors import UserError
from presets.job.schema import Job
from tests.helpers.facts import job
from tests.helpers.training.placements import ON_CPU

G = torch.Generator().manual_seed(7)
CHANGED, KEPT = "blocks.1.attn1.to_q", "blocks.0.attn2.to_v"


def near(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=G) * 0.2


def quiet(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def source(tiny) -> ModelFiles:
    return open_model_files(tiny)


def base_weights(source: ModelFiles) -> dict[str, torch.Tensor]:
    return {name: s.read(torch.float32) for name, s in source.expert("high_noise").stored.items()}


@pytest.fixture(scope="module")
def file(source, tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file with a change of every kind, and the differences that it stands for, by diffusers names."""
    weights = base_weights(source)
    n, k = weights[f"{CHANGED}.weight"].shape
    width, channels = weights["patch_embedding.weight"].shape[:2]
    text = "condition_embedder.text_embedder.linear_1"
    tensors = {
        f"diffusion_model.{lora.wan_name(CHANGED)}.lora_A.weight": near(4, k),
        f"diffusion_model.{lora.wan_name(CHANGED)}.lora_B.weight": near(n, 4),
        f"diffusion_model.{lora.wan_name(CHANGED)}.alpha": torch.tensor(2.0),
        f"diffusion_model.{lora.wan_name(CHANGED)}.diff_b": near(n),
        "diffusion_model.blocks.0.norm3.diff": near(width),
        "diffusion_model.blocks.0.diff_m": near(6, width),
        "diffusion_model.head.diff_m": near(2, width),
        "diffusion_model.head.head.diff": near(*weights["proj_out.weight"].shape),
        "diffusion_model.patch_embedding.lora_A.weight": near(3, channels, 1, 2, 2),
        "diffusion_model.patch_embedding.lora_B.weight": near(width, 3, 1, 1, 1),
        "diffusion_model.patch_embedding.diff_b": near(width),
        "diffusion_model.text_embedding.0.lora_A.weight": near(2, weights[f"{text}.weight"].shape[1]),
        "diffusion_model.text_embedding.0.lora_B.weight": near(width, 2),
    }
    path = tmp_path_factory.mktemp("merge") / "high.safetensors"
    save_file(tensors, path)
    own = {name.removeprefix("diffusion_model."): t for name, t in tensors.items()}
    at = lora.wan_name(CHANGED)
    patch = own["patch_embedding.lora_B.weight"].flatten(1) @ own["patch_embedding.lora_A.weight"].flatten(1)
    return path, {
        f"{CHANGED}.weight": 0.5 * own[f"{at}.lora_B.weight"] @ own[f"{at}.lora_A.weight"],
        f"{CHANGED}.bias": own[f"{at}.diff_b"],
        "blocks.0.norm2.weight": own["blocks.0.norm3.diff"],
        "blocks.0.scale_shift_table": own["blocks.0.diff_m"],
        "scale_shift_table": own["head.diff_m"],
        "proj_out.weight": own["head.head.diff"],
        "patch_embedding.weight": patch.view(weights["patch_embedding.weight"].shape),
        "patch_embedding.bias": own["patch_embedding.diff_b"],
        f"{text}.weight": own["text_embedding.0.lora_B.weight"] @ own["text_embedding.0.lora_A.weight"],
    }


def merges(path: Path, *strengths: float) -> Merges:
    changes = read_lora(path).of("high_noise")
    return Merges([MergedFile(path, changes, strength, "digest") for strength in strengths])


def loaded(source: ModelFiles, changes: Merges | None, precision: str) -> dict[str, tuple[torch.Tensor, ...]]:
    """Every packed weight and plain tensor of the blocks, by name."""
    buffers, layout = load_blocks(source, "high_noise", precision, ON_CPU, progress=quiet, changes=changes)
    out: dict[str, tuple[torch.Tensor, ...]] = {}
    for i, buffer in enumerate(buffers):
        weights, plain = layout.views(buffer)
        out |= {f"blocks.{i}.{name}.weight": parts for name, parts in weights.items()}
        out |= {f"blocks.{i}.{name}": (tensor,) for name, tensor in plain.items()}
    return out


def same(a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("precision", ["none", "float8", "int8", "qfloat8", "qint8", "qint4"])
def test_what_is_packed_is_the_merged_weight(source, file, precision):
    path, differences = file
    plain, merged, weights = (
        loaded(source, None, precision),
        loaded(source, merges(path, 0.5), precision),
        base_weights(source),
    )
    for name, before in plain.items():
        if name not in differences:
            assert same(merged[name], before), name
            continue
        assert not same(merged[name], before), name
        expected = weights[name] + 0.5 * differences[name].view(weights[name].shape)
        if name.rpartition(".")[0].partition("blocks.")[2].partition(".")[2] in LINEARS and name.endswith("weight"):
            found = unpack_weight(merged[name], precision, torch.float32)
            wanted = unpack_weight(pack(expected, precision), precision, torch.float32)
        else:
            found, wanted = merged[name][0], expected
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_the_modules_outside_the_blocks_too(source, file):
    path, differences = file
    outer = load_outer_modules(source, "high_noise", ON_CPU, changes=merges(path, 1.0)).state_dict()
    weights = base_weights(source)
    for name, tensor in outer.items():
        expected = weights[name] + (differences[name].view(tensor.shape) if name in differences else 0)
        torch.testing.assert_close(tensor, expected)


def test_several_add_up(source, file):
    path, differences = file
    name = f"{CHANGED}.weight"
    merged = loaded(source, merges(path, 1.0, -0.25), "none")[name][0]
    torch.testing.assert_close(merged, base_weights(source)[name] + 0.75 * differences[name])
    torch.testing.assert_close(loaded(source, merges(path, 1.0, -1.0), "none")[name][0], base_weights(source)[name])


@pytest.mark.parametrize("precision", ["float8", "qfloat8"])
def test_of_a_base_in_e4m3_only_what_is_changed_is_rounded_again(tiny, file, tmp_path, precision):
    path, differences = file
    copy = shutil.copytree(tiny, tmp_path / "base", symlinks=False)
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    eight = {
        name: t.to(torch.float8_e4m3fn) if t.ndim == 2 and name.startswith("blocks.") else t
        for name, t in load_file(weights).items()
    }
    save_file(eight, weights)
    scaled = open_model_files(copy)
    stored = scaled.expert("high_noise").stored
    merged = loaded(scaled, merges(path, 1.0), precision)
    kept = merged[f"{KEPT}.weight"]
    raw, _ = stored[f"{KEPT}.weight"].raw()
    assert raw.dtype == torch.float8_e4m3fn and torch.all(kept[1] == 1)
    assert torch.equal(kept[0].view(torch.uint8), raw.view(torch.uint8))
    name = f"{CHANGED}.weight"
    expected = stored[name].read(torch.float32) + differences[name]
    wanted = unpack_weight(pack(expected, precision), precision, torch.float32)
    torch.testing.assert_close(unpack_weight(merged[name], precision, torch.float32), wanted)


def test_the_weight_cache_knows_what_is_merged_and_in_which_order(source, file, tmp_path):
    path, _ = file
    part, other = source.expert("high_noise"), MergedFile(path, {}, 1.0, "other")
    first = merges(path, 1.0).files[0]
    kinds = [[], [first], [other], [first, other], [other, first], [MergedFile(path, {}, 0.5, "digest")]]
    keys = [cache_key(part, "none", torch.float32, changes=Merges(files) if files else None) for files in kinds]
    assert len(set(keys)) == len(keys) and keys[0] == cache_key(part, "none", torch.float32)


class Base:
    """As much of a BaseModel as merging asks for."""

    def __init__(self, source: ModelFiles) -> None:
        self.source = source


def merging(*merge: dict) -> Job:
    return job(model={"merge": list(merge)})


def test_of_a_job_by_expert_and_in_order(source, file):
    path, _ = file
    made = merging({"path": str(path), "strength": 0.5}, {"path": path.name, "expert": "low_noise"})
    found, notes = merges_of_job(made, path.parent, Base(source))
    assert {e: [f["strength"] for f in (m.about for m in own.files)] for e, own in found.items()} == {
        "high_noise": [0.5],
        "low_noise": [0.5, 1.0],
    }
    assert found["high_noise"].files[0].about["file"] == path.name, "no path of this machine"
    assert notes[0] == "high.safetensors is merged at 0.5 into high noise and low noise"
    assert merges_of_job(job(), path.parent, Base(source)) == ({}, [])


def test_what_does_not_fit_is_left_out_and_said_or_refused(source, file, tmp_path):
    tensors = load_file(file[0])
    del tensors["diffusion_model.patch_embedding.lora_A.weight"]
    del tensors["diffusion_model.patch_embedding.lora_B.weight"]
    # of a text-to-video model
    tensors["diffusion_model.patch_embedding.diff"] = near(32, 16, 1, 2, 2)
    save_file(tensors, tmp_path / "t2v.safetensors")
    found, notes = merges_of_job(merging({"path": "t2v.safetensors"}), tmp_path, Base(source))
    assert not any(own.has("patch_embedding.weight") for own in found.values())
    assert all(own.has(f"{CHANGED}.weight") and own.has("patch_embedding.bias") for own in found.values())
    assert sum("patch_embedding.diff of shape (32, 16, 1, 2, 2) is for the patches of another" in n for n in notes) == 1
    with pytest.raises(UserError, match="no such file"):
        merges_of_job(merging({"path": "gone.safetensors"}), tmp_path, Base(source))
    key = f"diffusion_model.{lora.wan_name(CHANGED)}.lora_B.weight"
    for bad, words in ((torch.full((32, 4), torch.nan), "not finite"), (torch.ones(32, 4).to(torch.int8), "int8")):
        save_file(load_file(file[0]) | {key: bad}, tmp_path / "bad.safetensors")
        with pytest.raises(UserError, match=words):  # before anything else is loaded
            merges_of_job(merging({"path": "bad.safetensors"}), tmp_path, Base(source))

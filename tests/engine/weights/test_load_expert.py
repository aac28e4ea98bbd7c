"""Blocks and the modules outside them, loaded apart, are the model that `from_pretrained` loads: bit for bit."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from engine.demo.tiny_base import build_tiny
from engine.executor.block_executor import BlockExecutor
from engine.executor.executor_resources import ExecutorResources
from engine.executor.expert_weights import ExpertWeights
from engine.system.pinned_memory import host_buffer
from engine.system.placement import Placement
from engine.wan import attention
from engine.wan.block import LINEARS
from engine.wan.quantize import pack
from engine.weights import load_expert
from engine.weights.load_expert import (
    KEYS,
    READERS,
    _pack,
    load_blocks,
    load_outer_modules,
    open_expert,
    read_ahead,
)
from engine.weights.model_files import StoredTensor, open_model_files, weight_of
from engine.weights.packed_blocks import layout_of
from presets.base.layouts import EXPERT_PART
from presets.base.tensor_files import read_tensors
from presets.errors import UserError
from presets.job.expert_schedule import EXPERTS
from presets.planner.plan import Plan
from tests.helpers import ROOT
from tests.helpers.training.packing import block_tensors
from tests.helpers.training.placements import ON_CPU
from tests.helpers.training.plain import CPU
from tests.helpers.waiting import PATIENCE

PRECISIONS = ("none", "float8", "int8", "qfloat8", "qint8", "qint4")


def quiet(*_: object) -> None:
    pass


def blocks(source, expert, precision="none", *, dtype=torch.float32):
    return load_blocks(source, expert, precision, Placement(CPU, dtype, pinned=False), progress=quiet)


@pytest.mark.parametrize("expert", EXPERTS)
def test_predictions_are_those_of_the_whole_model(tiny, expert):
    source = open_model_files(tiny)
    packed = blocks(source, expert)
    weights = ExpertWeights(
        expert, load_outer_modules(source, expert, ON_CPU), packed, [{} for _ in packed.buffers], 1.0
    )
    plan = Plan(precision="none", activations="device", slots=2, compiled=False)
    run = BlockExecutor(weights, ExecutorResources(plan, attention.CPU, weights.block_bytes, CPU))
    whole = WanTransformer3DModel.from_pretrained(tiny, subfolder=EXPERT_PART[expert], torch_dtype=torch.float32).eval()
    x, t, text = torch.randn(2, 36, 3, 4, 6), torch.tensor([900.0, 300.0]), torch.randn(2, 16, 32)
    with torch.no_grad():
        assert torch.equal(run.predict(x, t, text), whole(x, t, text, return_dict=False)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outer_modules_are_loaded_as_diffusers_loads_them(tiny, dtype):
    outer = load_outer_modules(open_model_files(tiny), "low_noise", Placement(CPU, dtype, pinned=False))
    whole = WanTransformer3DModel.from_pretrained(tiny, subfolder="transformer_2", torch_dtype=dtype)
    plain = {n: t for n, t in [*whole.named_parameters(), *whole.named_buffers()] if not n.startswith("blocks.")}
    ours = dict([*outer.named_parameters(), *outer.named_buffers()])
    assert ours.keys() == plain.keys() and {"rope.freqs_cos", "scale_shift_table"} <= ours.keys()
    for name, t in plain.items():
        assert t.dtype == ours[name].dtype and torch.equal(t, ours[name]), name
    assert not outer.training and not any(p.requires_grad for p in outer.parameters())


def rounded(values: torch.Tensor, stored: str) -> dict[str, torch.Tensor]:
    """A matrix as a base of this kind holds it: in its type, or in e4m3 with a scale."""
    if stored != "fp8_scaled":
        return {"weight": values.to({"fp32": torch.float32, "fp16": torch.float16, "fp8": torch.float8_e4m3fn}[stored])}
    scale = values.abs().max() / 448
    return {"weight": (values / scale).to(torch.float8_e4m3fn), "scale": scale}


@pytest.mark.parametrize("stored", ["fp32", "fp16", "fp8", "fp8_scaled"])
def test_a_published_adapter_s_grid_is_that_of_the_weights_in_bf16(stored):
    """However the base holds them; see also test_build."""
    held = rounded(torch.randn(8, 128, generator=torch.Generator().manual_seed(1)) * 0.02, stored)
    plain = weight_of(held["weight"], held.get("scale"), torch.float32).bfloat16()
    ours = _pack(held["weight"], held.get("scale"), "qint4", torch.float32, "uint4-bf16")
    assert all(map(torch.equal, ours, pack(plain, "qint4", "uint4")))
    grids = pack(plain.float(), "qint4", "uint4")
    assert not all(map(torch.equal, ours, grids)), "in fp32 the grid comes out otherwise"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_blocks_are_packed_as_the_state_dict_would_be(tiny, precision):
    whole = WanTransformer3DModel.from_pretrained(tiny, subfolder="transformer", torch_dtype=torch.float32)
    buffers, layout = blocks(open_model_files(tiny), "high_noise", precision)
    assert len(buffers) == len(whole.blocks)
    for block, buffer in zip(whole.blocks, buffers, strict=True):
        weights, plain = block_tensors(block.state_dict(), precision)
        assert layout == layout_of(weights, plain)
        ours, ours_plain = layout.views(buffer)
        for name, parts in weights.items():
            assert all(
                torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(ours[name], parts, strict=True)
            ), name
        assert all(torch.equal(ours_plain[name], t) for name, t in plain.items())


def test_activations_in_bf16_take_bf16_biases_and_fp32_modulation(tiny):
    _, layout = blocks(open_model_files(tiny), "high_noise", "float8", dtype=torch.bfloat16)
    types = {s.key: s.dtype for s in layout.tensors if s.part < 0}
    fp32 = {"norm2.weight", "norm2.bias", "scale_shift_table"}
    assert {k for k, t in types.items() if t == torch.float32} == fp32
    assert all(t == torch.bfloat16 for k, t in types.items() if k not in fp32)


def test_every_tensor_of_a_block_is_loaded(tiny):
    whole = WanTransformer3DModel.from_pretrained(tiny, subfolder="transformer")
    assert set(KEYS) == set(whole.blocks[0].state_dict()) and len(KEYS) == 2 * len(LINEARS) + 7


def test_only_the_expert_asked_for_is_opened(tiny, monkeypatch):
    read: set[str] = set()
    fetch = StoredTensor._fetch

    def noted(self, place, into):
        read.add(self.file.parent.name)
        return fetch(self, place, into)

    monkeypatch.setattr(StoredTensor, "_fetch", noted)
    source = open_model_files(tiny)
    blocks(source, "low_noise")
    assert read == {"transformer_2"}


def test_progress_counts_blocks(tiny):
    seen = []
    load_blocks(open_model_files(tiny), "high_noise", "none", ON_CPU, progress=lambda *a: seen.append(a))
    assert [(done, total) for done, total, _ in seen] == [(0, 2), (1, 2), (2, 2)]


def test_an_error_in_the_middle_leaves_no_thread_behind(tmp_path):
    source = open_model_files(build_tiny(tmp_path / "deep", layers=16))  # more blocks than the readers can be ahead
    (file,) = open_expert(source, "high_noise").files
    before = threading.active_count()

    def cut(done: int, total: int, text: str) -> None:
        if done == 1:
            os.truncate(file, file.stat().st_size // 8)

    with pytest.raises(UserError, match="ends too early"):
        load_blocks(source, "high_noise", "none", ON_CPU, progress=cut)
    assert threading.active_count() == before


def test_what_is_read_ahead_takes_no_more_than_two_of_the_largest(tmp_path, monkeypatch):
    """Of Wan's blocks, eight of ten matrices have a third of the size of the others."""
    sizes = [100, 100, 7, 270, 270, 1, 100, 270, 270, 270, 100, *[100] * 12, 270]
    whole = {f"t{i:02}": torch.randn(size) for i, size in enumerate(sizes)}
    save_file(whole, tmp_path / "a.safetensors")
    held = []
    monkeypatch.setattr(
        load_expert, "host_buffer", lambda size, pinned: (held.append(size), host_buffer(size, pinned=pinned))[1]
    )
    order = [
        StoredTensor(name, tmp_path / "a.safetensors", place)
        for name, place in sorted(read_tensors(tmp_path / "a.safetensors").items())
    ]
    read = [raw.clone() for raw, _ in read_ahead(order, pinned=False)]
    assert all(torch.equal(own, theirs) for own, theirs in zip(read, whole.values(), strict=True))
    assert sum(held) == 4 * (2 * 270 + (READERS - 1) * 100)


def test_no_second_copy_in_host_memory():
    """The benchmark's own measurement: a second copy of its expert would be eight blocks in the source's precision."""
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.loading", "--tiny", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert run.returncode == 0, run.stdout + run.stderr

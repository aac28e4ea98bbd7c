"""The kernels around float8 products: in Triton's interpreter against plain torch, and compiled for the cards that have
float8, without one."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is there on Linux")

from triton import compile as assemble
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.wan import fp8_ops, triton_fp8
from engine.wan.triton_fp8 import parts
from tests.helpers import ROOT

pytestmark = pytest.mark.process  # Triton's assembler is a program

# Triton asks when it is imported whether to interpret, so the kernels run in a process of their own: all cases at once.
INTERPRETED = """
import sys, torch
from engine.wan import triton_fp8 as kernels
cases = torch.load(sys.argv[1], weights_only=False)
run = {"quantize": kernels.rowwise_e4m3, "transpose": kernels.transposed}
torch.save({name: run[name.split(":")[0]](*given) for name, given in cases.items()}, sys.argv[2])
"""
WIDTHS = (5120, 512, 320, 33, 1)
SHAPES = {"whole tiles": (32, 64), "edges": (17, 35), "one row": (1, 33), "one column": (33, 1)}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def given() -> dict[str, tuple[Any, ...]]:
    cases: dict[str, tuple[Any, ...]] = {}
    for columns in WIDTHS:
        for kind in (torch.bfloat16, torch.float32):
            x = drawn(3, columns).to(kind)
            x[2] = 0
            # codes before they are rounded: the interpreter's own cast to e4m3 carries no bit into the exponent
            cases[f"quantize:{columns} {kind}"] = (x, None, 1e-6, 1, None, torch.float32)
            # two rows a program, of which the last has one
            fold = drawn(columns, seed=1).abs() * 1e-3
            cases[f"quantize:{columns} {kind} folded"] = (x, fold, 1e-12, 2, None, torch.float32)
    for name, shape in SHAPES.items():
        cases[f"transpose:{name}"] = (drawn(*shape).to(torch.float8_e4m3fn), (32, 32))
    return cases


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("interpreted")
    torch.save(given(), folder / "in.pt")
    said = subprocess.run(
        [sys.executable, "-c", INTERPRETED, str(folder / "in.pt"), str(folder / "out.pt")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert said.returncode == 0, said.stderr
    out: dict[str, Any] = torch.load(folder / "out.pt")
    return out


@pytest.mark.parametrize("name", [name for name in given() if name.startswith("quantize")])
def test_scales_and_codes_are_those_of_plain_torch(found: dict[str, Any], name: str) -> None:
    q, scale = found[name]
    x, fold, floor, *_ = given()[name]
    right, right_scale = fp8_ops.rowwise_e4m3(x, fold, floor)
    torch.testing.assert_close(scale, right_scale, rtol=1e-6, atol=0)
    values = x.float() if fold is None else x.float() * fold
    torch.testing.assert_close(q, values / right_scale, rtol=1e-6, atol=0)
    # multiplied by the inverse, not divided: now and then the other side of a half
    assert float((q.to(right.dtype).float() != right.float()).float().mean()) < 2e-3


@pytest.mark.parametrize("name", [name for name in given() if name.startswith("transpose")])
def test_a_weight_is_transposed_byte_by_byte(found: dict[str, Any], name: str) -> None:
    right = given()[name][0].t().contiguous()
    assert found[name].dtype == right.dtype and found[name].is_contiguous()
    assert torch.equal(found[name].view(torch.int8), right.view(torch.int8))


@pytest.mark.parametrize("columns", [*range(1, 66), 5120, 13824])
def test_two_parts_hold_a_row(columns: int) -> None:
    head, tail = parts(columns)
    assert head <= columns <= head + tail and head & (head - 1) == tail & (tail - 1) == 0


# Without a card

SHARED = {89: 99, 90: 227, 120: 99}  # compute capability -> KiB of shared memory a program may have
ALIGNED = [["tt.divisibility", 16]]


def compiled(kernel: Any, types: dict[str, str], constants: dict[str, Any], capability: int, warps: int) -> None:
    names = kernel.arg_names
    assert set(names) == set(types) | set(constants)
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): ALIGNED for i, name in enumerate(names) if types.get(name, "").startswith("*")},
    )
    made = assemble(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    assert made.metadata.shared <= SHARED[capability] * 1024


@pytest.mark.parametrize("capability", SHARED)
def test_kernels_compile_for_wan_s_widths(capability: int) -> None:
    for columns, warps in zip((5120, 13824), triton_fp8.WARPS, strict=True):
        head, tail = parts(columns)
        types = {"x": "*bf16", "q": "*fp8e4nv", "scale": "*fp32", "fold": "*fp32", "floor": "fp32"}
        types |= {"rows": "i32", "columns": "i32"}
        constants = {"FOLD": True, "HEAD": head, "TAIL": tail, "ROWS": triton_fp8.ROWS}
        compiled(triton_fp8.rowwise_e4m3_kernel, types, constants, capability, warps)
    types = {"x": "*i8", "y": "*i8", "rows": "i32", "columns": "i32"}
    tile = {"TILE_ROWS": triton_fp8.TILE, "TILE_COLUMNS": triton_fp8.TILE}
    compiled(triton_fp8.transposed_kernel, types, tile, capability, 4)

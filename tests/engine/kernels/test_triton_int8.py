"""The kernels of the int8 product: in Triton's interpreter against plain torch, and compiled for each generation of
cards without one."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is there on Linux")

from engine.kernels import triton_int8
from engine.kernels.triton_int8 import TILES, Tile, length_of, warps_of
from engine.wan import int8_ops
from tests.helpers.kernels import SHARED, assembled, interpreted
from tests.helpers.tiers import thorough

pytestmark = pytest.mark.process  # Triton's assembler is a program

INTERPRETED = """
import sys, torch
from engine.kernels import triton_int8 as kernels
cases = torch.load(sys.argv[1], weights_only=False)
run = {"quantize": kernels.rotated_int8, "rotate": kernels.rotated, "multiply": kernels.int8_product}
torch.save({name: run[name.split(":")[0]](*given) for name, given in cases.items()}, sys.argv[2])
"""
WIDTHS = {"5120": 256, "768": 256, "320": 64, "48": 16, "24": 8, "33": 1}  # columns and the side of their rotations
SMALL = Tile(16, 32, 32, 4, 2)
SHAPES = {"whole tiles": (32, 64, 64), "edges": (17, 35, 50), "one row": (1, 7, 33)}  # rows, outputs, columns


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def codes(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-127, 128, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int8)


def given() -> dict[str, tuple[Any, ...]]:
    cases: dict[str, tuple[Any, ...]] = {}
    for columns, side in WIDTHS.items():
        for kind in (torch.bfloat16, torch.float32):
            x = drawn(3, int(columns)).to(kind)
            x[2] = 0
            cases[f"quantize:{columns} {kind}"] = (x, None, side, 1e-6)
            cases[f"quantize:{columns} {kind} folded"] = (x, drawn(int(columns), seed=1).abs() * 1e-3, side, 1e-12)
            cases[f"rotate:{columns} {kind}"] = (x, None, side)
            cases[f"rotate:{columns} {kind} and bias"] = (x, drawn(int(columns), seed=2).bfloat16(), side)
    for name, (m, n, k) in SHAPES.items():
        a, b, scales = codes(m, k), codes(n, k, seed=1), (drawn(m, 1).abs(), drawn(n, 1, seed=1).abs())
        cases[f"multiply:{name}"] = (a, scales[0], b, scales[1], torch.float32, SMALL)
        cases[f"multiply:{name}, one scale"] = (a, scales[0], b, None, torch.bfloat16, SMALL)
    return cases


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return interpreted(INTERPRETED, given(), tmp_path_factory.mktemp("interpreted"))


@pytest.mark.parametrize("name", [name for name in given() if name.startswith("quantize")])
def test_codes_are_those_of_plain_torch(found: dict[str, Any], name: str) -> None:
    q, scale = found[name]
    right, right_scale = int8_ops.rotated_int8(*given()[name])
    torch.testing.assert_close(scale, right_scale, rtol=1e-5, atol=1e-12)
    # sums in another order fall on the other side of a half now and then
    apart = (q.int() - right.int()).abs()
    assert int(apart.max()) <= 1 and float((apart > 0).float().mean()) < 2e-3
    assert not q[2].any()


@pytest.mark.parametrize("name", [name for name in given() if name.startswith("rotate")])
def test_rows_are_rotated_as_by_plain_torch(found: dict[str, Any], name: str) -> None:
    right = int8_ops.rotated(*given()[name])
    close = {"rtol": 1e-2, "atol": 1e-2} if right.dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(found[name], right, **close)


@pytest.mark.parametrize("name", [name for name in given() if name.startswith("multiply")])
def test_products_are_exact_but_for_their_scales(found: dict[str, Any], name: str) -> None:
    *operands, dtype, _ = given()[name]
    right = int8_ops.int8_product(*operands, dtype)
    torch.testing.assert_close(found[name], right, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=0)


# Without a card

# every tile where least shared memory is and where another unit multiplies, elsewhere the one that takes most
COMPILED = [(cc, tile) for cc in SHARED for tile in (TILES if cc in (86, 90) else TILES[-1:])]


@pytest.mark.parametrize(("capability", "tile"), COMPILED, ids=str)
def test_every_tile_fits_every_card_and_uses_its_integer_units(capability: int, tile: Tile) -> None:
    types = {"a": "*i8", "a_scale": "*fp32", "b": "*i8", "b_scale": "*fp32", "y": "*bf16"}
    types |= dict.fromkeys("MNK", "i32")
    constants = {"ROWS": tile.rows, "OUTPUTS": tile.outputs, "COLUMNS": tile.columns, "GROUP": 8, "SCALED": True}
    constants["WHOLE"] = True  # Wan's widths are multiples of every tile's columns
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    made = assembled(triton_int8.product_kernel, types, constants, capability, whole="N K", **options)
    assert made.metadata.shared <= SHARED[capability] * 1024
    unit = "wgmma.mma_async" if capability == 90 else "mma.sync"
    assert any(unit in line and ".s32.s8.s8" in line for line in made.asm["ptx"].splitlines())


# where least shared memory is and where most is
@pytest.mark.parametrize("capability", [86, 90, *thorough(80, 89, 120)])
def test_rotations_compile_for_both_of_wan_s_widths(capability: int) -> None:
    shared, kernels = SHARED[capability] * 1024, (triton_int8.rotated_int8_kernel, triton_int8.rotated_kernel)
    sizes = {"columns": "i32", "side": "i32", "norm": "fp32"}
    for columns in (5120, 13824):
        length = length_of(columns)
        types = {"x": "*bf16", "q": "*i8", "scale": "*fp32", "fold": "*fp32", **sizes, "floor": "fp32"}
        constants: dict[str, Any] = {"FOLD": True, "LENGTH": length}
        made = assembled(kernels[0], types, constants, capability, whole="", num_warps=warps_of(length))
        assert made.metadata.shared <= shared
        types, constants = {"x": "*bf16", "y": "*bf16", "bias": "*bf16", **sizes}, {"BIAS": True, "LENGTH": length}
        made = assembled(kernels[1], types, constants, capability, whole="", num_warps=warps_of(length))
        assert made.metadata.shared <= shared

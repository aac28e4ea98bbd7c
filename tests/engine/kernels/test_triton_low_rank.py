"""The kernel that adds a LoRA's part: in Triton's interpreter against plain torch, and compiled for each generation of
cards without one."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is there on Linux")

from engine.kernels import triton_low_rank
from engine.kernels.triton_low_rank import COLUMNS, ROWS, WARPS, step_of
from engine.wan import low_rank
from tests.helpers.kernels import SHARED, assembled, interpreted

pytestmark = pytest.mark.process  # Triton's assembler is a program

INTERPRETED = """
import sys, torch
from engine.kernels import triton_low_rank as kernels
cases = torch.load(sys.argv[1])
run = {"sum": kernels.low_rank_sum, "gelu": kernels.low_rank_sum, "slope": kernels.low_rank_gelu_gradient}
torch.save({name: run[name.split(":")[0]](*given, (32, 32)) for name, given in cases.items()}, sys.argv[2])
"""
# rows, columns, rank
SHAPES = {"whole tiles": (32, 64, 16), "edges": (17, 35, 4), "one of each": (1, 1, 1), "several steps": (33, 40, 96)}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def given() -> dict[str, tuple[Any, ...]]:
    cases: dict[str, tuple[Any, ...]] = {}
    for name, (m, n, r) in SHAPES.items():  # in fp32: the interpreter multiplies bf16 as if it were integers
        y, ax, b, g = (drawn(*shape, seed=seed) for seed, shape in enumerate(((m, n), (m, r), (n, r), (m, n))))
        y[0] = -30.0  # where a GELU is zero
        cases[f"sum:{name}"] = (y, ax, b, False)
        cases[f"gelu:{name}"] = (y, ax, b, True)
        cases[f"slope:{name}"] = (g, y, ax, b)
    return cases


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return interpreted(INTERPRETED, given(), tmp_path_factory.mktemp("interpreted"))


@pytest.mark.parametrize("name", given())
def test_the_kernel_gives_what_plain_torch_gives(found: dict[str, torch.Tensor], name: str) -> None:
    way = low_rank.low_rank_gelu_gradient if name.startswith("slope") else low_rank.low_rank_sum
    torch.testing.assert_close(found[name], way(*given()[name]), rtol=1e-5, atol=1e-5)


# Without a card


@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize("ranks", [16, 128])
def test_it_fits_every_card(capability: int, ranks: int) -> None:
    kernel = triton_low_rank.low_rank_kernel
    types = dict.fromkeys(("g", "y", "ax", "b", "out"), "*bf16") | dict.fromkeys(("rows", "columns", "ranks"), "i32")
    constants = {"GELU": True, "GRADIENT": True, "ROWS": ROWS, "COLUMNS": COLUMNS, "STEP": step_of(ranks)}
    made = assembled(kernel, types, constants, capability, whole="columns ranks", num_warps=WARPS)
    assert made.metadata.shared <= SHARED[capability] * 1024

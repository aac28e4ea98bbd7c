"""The kernel that normalizes and turns queries: in Triton's interpreter against plain torch, and compiled for each
generation of cards without one."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is there on Linux")

from engine.kernels import triton_norm_rope
from engine.wan import norm_rope
from tests.helpers.kernels import SHARED, assembled, interpreted

pytestmark = pytest.mark.process  # Triton's assembler is a program

INTERPRETED = """
import sys, torch
from engine.kernels import triton_norm_rope as kernels
cases = torch.load(sys.argv[1])
torch.save({name: kernels.norm_rope(*given, 1e-6) for name, given in cases.items()}, sys.argv[2])
"""
SHAPES = {"whole": (1, 5, 4, 16), "two clips": (2, 3, 5, 16), "widths of no power": (1, 3, 3, 12)}  # B, T, N, K
Given = tuple[torch.Tensor | None, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def given() -> dict[str, Given]:
    made = torch.Generator().manual_seed(0)
    cases: dict[str, Given] = {}
    for name, (clips, tokens, heads, width) in SHAPES.items():
        x, g = (torch.randn(clips * tokens, heads * width, generator=made) * 3 for _ in range(2))
        weight, angles = torch.rand(heads * width, generator=made), torch.randn(tokens, width, generator=made)
        rest = x.bfloat16(), weight.bfloat16(), angles.cos(), angles.sin()
        cases[name] = (None, *rest)
        cases[f"{name}, gradient"] = (g.bfloat16(), *rest)
    return cases


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return interpreted(INTERPRETED, given(), tmp_path_factory.mktemp("interpreted"))


@pytest.mark.parametrize("name", given())
def test_the_kernel_gives_what_plain_torch_gives(found: dict[str, torch.Tensor], name: str) -> None:
    g, *rest = given()[name]
    right = norm_rope.norm_rope(*rest) if g is None else norm_rope.norm_rope_gradient(g, *rest)
    torch.testing.assert_close(found[name], right, rtol=1e-2, atol=1e-2)


# Without a card


@pytest.mark.parametrize("capability", SHARED)
def test_it_fits_every_card(capability: int) -> None:
    kernel = triton_norm_rope.norm_rope_kernel
    types = dict.fromkeys(("g", "x", "weight", "out"), "*i32") | dict.fromkeys(("cos", "sin"), "*fp32")
    types |= dict.fromkeys(("tokens", "columns", "width"), "i32") | {"eps": "fp32"}
    constants = {"GRADIENT": True, "HEADS": 64, "PAIRS": 64}  # 40 heads of 128
    made = assembled(kernel, types, constants, capability, whole="columns width", num_warps=triton_norm_rope.WARPS)
    assert made.metadata.shared <= SHARED[capability] * 1024

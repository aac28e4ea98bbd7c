"""The convolution's kernels: in Triton's interpreter against plain torch, and compiled for each generation of cards
without one."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("triton", reason="Triton is there on Linux")

from engine.encode.convolution import inside, make_padded, norm_silu
from engine.kernels import triton_conv
from engine.kernels.triton_conv import Tile, packed, tile_of
from tests.helpers.kernels import SHARED, assembled, interpreted

pytestmark = pytest.mark.process  # Triton's assembler is a program

INTERPRETED = """
import sys, torch
from engine.kernels import triton_conv as kernels
def norm(x, bias, gamma, padded):
    kernels.norm_silu(x, bias, gamma, padded)
    return padded
def conv_norm(x, weight, bias, gamma, padded, tile):
    kernels.conv_norm_silu(x, weight, bias, gamma, padded, kernels.Tile(*tile))
    return padded
def conv(x, weight, bias, beside, tile, edge=0):
    return kernels.conv(x, weight, bias, beside, kernels.Tile(*tile), edge)
run = {"conv": conv, "norm": norm, "both": conv_norm}
cases = torch.load(sys.argv[1])
torch.save({name: run[name.split(":")[0]](*given) for name, given in cases.items()}, sys.argv[2])
"""
CASES = {  # B, T, H, W, C, N, and a tile
    "several tiles": ((1, 2, 3, 6, 32, 16), Tile(16, 16, 0, 32, 4, 2, True)),
    "a load over pixels": ((2, 1, 3, 4, 24, 16), Tile(32, 16, 0, 32, 4, 2, True)),
    "outputs in two": ((2, 2, 3, 4, 16, 24), Tile(32, 16, 16, 16, 4, 2, True)),
    "outputs of two programs": ((1, 2, 3, 4, 16, 40), Tile(32, 16, 16, 16, 4, 2, True)),
    "few inputs": ((1, 1, 3, 7, 8, 16), Tile(32, 16, 0, 32, 4, 2, True)),
    "a load over pixels, by pointers": ((2, 2, 3, 4, 24, 16), Tile(16, 16, 0, 32, 4, 2, False)),
    "outputs in two, by pointers": ((2, 1, 3, 4, 16, 24), Tile(32, 16, 16, 16, 4, 2, False)),
}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def padded(*size: int, seed: int = 0) -> torch.Tensor:
    """What lies behind its end is no number."""
    made = make_padded(size, torch.empty(0))
    made.as_strided((made.numel() + 4 * size[-1],), (1,))[made.numel() :] = float("nan")
    made[:, :, 1:-1, 1:-1] = drawn(size[0], size[1] + 2, *size[2:], seed=seed)
    return made


def given() -> dict[str, tuple[Any, ...]]:
    cases: dict[str, tuple[Any, ...]] = {}
    for name, ((B, T, H, W, C, N), tile) in CASES.items():  # in fp32: the interpreter takes bf16 for integers
        x, weight, bias, gamma = padded(B, T, H, W, C), drawn(N, C, 3, 3, 3), drawn(N, seed=1), drawn(N, seed=2)
        weight = packed(weight, tile.columns)
        cases[f"conv:{name}"] = (x, weight, bias, None, tuple(tile))
        cases[f"conv:{name}, a sum and an edge"] = (x, weight, bias, drawn(B, T, H, W, N, seed=3), tuple(tile), 1)
        if tile.outputs + tile.rest >= N:
            cases[f"both:{name}"] = (x, weight, bias, gamma, padded(B, T + 1, H, W, N, seed=4), tuple(tile))
    for name, C in {"whole": 16, "channels of no power": 24}.items():
        x, gamma = drawn(2, 2, 4, 5, C), drawn(C, seed=1)
        cases[f"norm:{name}"] = (x, None, gamma, padded(2, 3, 4, 5, C))
        cases[f"norm:{name}, a bias"] = (x, drawn(C, seed=2), gamma, padded(2, 3, 4, 5, C))
    return cases


def right(name: str) -> torch.Tensor:
    if name.startswith("norm"):
        x, bias, gamma, into = given()[name]
        inside(into)[:] = norm_silu(x, bias, gamma)[:, [0, 1, 1]]  # the last one goes on
        return into
    (_, T, _, _, C, N), _ = CASES[name.split(":")[1].removesuffix(", a sum and an edge")]
    x, _, bias, *rest = given()[name]
    y = F.conv3d(x.permute(0, 4, 1, 2, 3), drawn(N, C, 3, 3, 3), bias).permute(0, 2, 3, 4, 1)
    if name.startswith("conv"):
        y = y if rest[0] is None else y + rest[0]
        return F.pad(y, (0, 0, 0, 1, 0, 1)) if "edge" in name else y
    gamma, into, _ = rest
    inside(into)[:, :T] = norm_silu(y, None, gamma)
    return into


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return interpreted(INTERPRETED, given(), tmp_path_factory.mktemp("interpreted"))


@pytest.mark.parametrize("name", given())
def test_the_kernel_gives_what_plain_torch_gives(found: dict[str, torch.Tensor], name: str) -> None:
    torch.testing.assert_close(found[name], right(name), rtol=1e-4, atol=1e-4)


def test_a_weight_that_is_channels_last_is_not_copied() -> None:
    weight = drawn(6, 32, 3, 3, 3).contiguous(memory_format=torch.channels_last_3d)
    assert packed(weight, 32).data_ptr() == weight.data_ptr()
    assert packed(weight, 64).shape == (6, 9 * 128)


# Without a card


def built(tile: Tile, inputs: int, capability: int) -> Any:
    of = {"x": tile.pixels, "weight": tile.outputs, "weight_rest": tile.rest or tile.outputs}
    types = {
        name: f"tensordesc<bf16[{rows}, {tile.columns}]>" if tile.described else "*bf16" for name, rows in of.items()
    }
    types |= dict.fromkeys(("bias", "beside", "y"), "*bf16") | {"root": "fp32"}
    types |= dict.fromkeys(("frames", "clips", "height", "width", "N", "padded_frames"), "i32")
    constants: dict[str, Any] = {"C": inputs, "PIXELS": tile.pixels, "OUTPUTS": tile.outputs, "REST": tile.rest}
    constants |= {"COLUMNS": tile.columns, "DESCRIBED": tile.described, "BESIDE": False, "NORM": True}
    constants |= {"EDGE": 0, "GROUP": triton_conv.GROUP}
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return assembled(triton_conv.conv_kernel, types, constants, capability, whole="N", **options)


@pytest.mark.parametrize("capability", SHARED)
def test_the_tile_that_takes_most_fits_every_card_with_norm_and_activation_behind_it(capability: int) -> None:
    most = tile_of(384, divmod(capability, 10))
    made = built(most, 384, capability)
    assert made.metadata.shared <= SHARED[capability] * 1024
    assert ("wgmma.mma_async" if capability == 90 else "mma.sync") in made.asm["ptx"]


@pytest.mark.parametrize("kernel", [triton_conv.conv_kernel, triton_conv.norm_silu_kernel], ids=["conv", "norm"])
def test_clips_of_all_sizes_share_one_variant(kernel: Any) -> None:
    """Else each further size of a job is seconds of compiling, at the first step that meets it."""
    sizes = {"frames", "clips", "height", "width", "padded_frames", "held"}
    assert sizes & set(kernel.arg_names) == {p.name for p in kernel.params if p.do_not_specialize}

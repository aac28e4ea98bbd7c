"""Which precision compiles for which generation of cards, without one: what docs/job-file.md promises in its table."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is there on Linux")

from triton import compile as assemble
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.kernels.triton_fp8 import rowwise_e4m3_kernel
from engine.wan.block import BEFORE_LINEARS, BlockWeights, pre_attention
from engine.wan.frozen_linear import Packed, as_bytes, e4m3_values, unpack_weight
from engine.wan.quantize import pack
from presets.machine.precisions import TRANSFORMER
from tests.helpers.tiers import thorough
from tests.helpers.training.absent_cards import assemble_for, kernels_for

pytestmark = pytest.mark.process  # Triton's assembler is a program

CAPABILITIES = (80, 86, 89, 90, 120)
WIDTH, HEADS, TOKENS = 256, 2, 64
STORED = ("qfloat8", "qint8", "qint4")


def given(packed: Packed, precision: str) -> Packed:
    """As the executor hands them to compiled code."""
    return as_bytes(packed) if precision == "qfloat8" else packed


def runs(precision: str, capability: int) -> bool:
    return TRANSFORMER[precision][0] <= divmod(capability, 10)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("precision", STORED)
def test_what_dequantizes_compiles(tmp_path: Path, capability: int, precision: str) -> None:
    assert runs(precision, capability)
    packed = given(pack(torch.randn(64, WIDTH).bfloat16(), precision), precision)
    [source] = kernels_for(capability, lambda *packed: unpack_weight(packed, precision, torch.bfloat16), packed)
    assert "fp8" not in source and "float8" not in source
    assemble_for(capability, source, tmp_path)


# the oldest and the newest; on all of them test_what_dequantizes_compiles
@pytest.mark.parametrize("capability", [80, 120, *thorough(86, 89, 90)])
def test_a_block_s_part_compiles_in_bf16(tmp_path: Path, capability: int) -> None:
    """Norm and modulation before three linears. What follows them is a kernel of ours (test_triton_norm_rope)."""
    assert runs("none", capability)
    tables = [
        torch.zeros(1, 6, WIDTH),
        torch.zeros(1, TOKENS, 1, WIDTH // HEADS),
        torch.zeros(1, TOKENS, 1, WIDTH // HEADS),
        torch.zeros(1, 6, WIDTH),
    ]
    tensors = [
        torch.zeros(1, TOKENS, WIDTH).bfloat16(),
        *tables,
        torch.zeros(WIDTH).bfloat16(),
        torch.zeros(WIDTH, WIDTH).bfloat16(),
    ]

    def part(
        x: torch.Tensor,
        time: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        table: torch.Tensor,
        vector: torch.Tensor,
        weight: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        plain = {
            "scale_shift_table": table,
            "attn1.norm_q.weight": vector,
            "attn1.norm_k.weight": vector,
            **{f"{name}.bias": vector for name in BEFORE_LINEARS},
        }
        weights = dict.fromkeys(BEFORE_LINEARS, (weight,))
        return pre_attention(x, time, cos, sin, BlockWeights(weights, plain, {}, {}, time, HEADS, "none"))

    sources = kernels_for(capability, part, tensors)
    assert sources, "norm and modulation"
    for source in sources:
        assemble_for(capability, source, tmp_path)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_float8_products_compile_just_where_the_table_says(capability: int) -> None:
    kernel = rowwise_e4m3_kernel
    types = {
        "x": "*bf16",
        "q": "*fp8e4nv",
        "scale": "*fp32",
        "fold": "*fp32",
        "columns": "i32",
        "floor": "fp32",
        "FOLD": "constexpr",
        "BLOCK": "constexpr",
    }
    source = ASTSource(
        fn=kernel,
        signature=types,
        constexprs={(kernel.arg_names.index("FOLD"),): False, (kernel.arg_names.index("BLOCK"),): 8192},
    )

    def compiles() -> bool:
        try:
            assemble(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
        except Exception as e:  # Triton's own, of several kinds
            assert "fp8e4nv not supported" in str(e.__cause__ or e)
            return False
        return True

    assert compiles() == runs("float8", capability)


def test_bytes_of_e4m3_are_what_the_cast_makes_of_them() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    ours, theirs = e4m3_values(codes), codes.view(torch.float8_e4m3fn).to(torch.float32)
    assert torch.equal(ours.isnan(), theirs.isnan()) and ours.isnan().sum() == 2
    number = ~ours.isnan()
    assert torch.equal(ours[number].view(torch.int32), theirs[number].view(torch.int32)), "the sign of zero too"


def test_a_weight_is_the_same_from_bytes() -> None:
    packed = pack(torch.randn(32, 64), "qfloat8")
    assert as_bytes(packed)[0].dtype == torch.uint8 and as_bytes(packed)[0].data_ptr() == packed[0].data_ptr()
    assert torch.equal(
        unpack_weight(as_bytes(packed), "qfloat8", torch.bfloat16), unpack_weight(packed, "qfloat8", torch.bfloat16)
    )

"""How a frozen weight is packed for storage, by precision, and on which grid of 4 bits.

An accuracy recovery adapter made for one grid is noise on another. The grid "uint4" is torchao's UIntXWeightOnlyConfig
(torchao 0.10), on which the published adapters for ai-toolkit were trained: groups of 64 inputs, 0 to 15 around an
integer zero point, computed in the weight's own type. ai-toolkit holds its base in bf16, so that is what the published
ones assume ("uint4-bf16"): from fp32 or fp8 weights the grid comes out otherwise by a third of the error that they
repair. Here its values are put into the layout of qint4, so that storage
and compute need not know the difference. What is packed is read by `engine.wan.frozen_linear`; quanto's quantizers are
in `engine.wan.quantize_quanto`.

N outputs, K inputs.
"""

import hashlib
from typing import Literal

import numpy as np
import torch

from engine.system.keyed_random import keyed_rng
from engine.wan.frozen_linear import Packed, pack_float8, unpack_weight
from engine.wan.int8_linear import pack_int8

Grid = Literal["qint4", "uint4", "uint4-bf16"]
GRIDS: tuple[Grid, ...] = ("qint4", "uint4")  # those that adapters are built for here, on weights as they are stored
PUBLISHED_GRID: Grid = "uint4-bf16"  # uint4 of weights that are rounded to bf16 first
INT4 = "qint4"  # the precision of a packed weight on either grid
UINT4_GROUP = 64
UINT4_TOP = 15.0


def pack(weight_NK: torch.Tensor, precision: str, grid: Grid = "qint4") -> Packed:
    """One frozen weight as `engine.wan.frozen_linear.unpack_weight` reads it. `grid` matters for qint4 alone."""
    if precision == "none":
        return (weight_NK,)
    if precision == "float8":
        return pack_float8(weight_NK)
    if precision == "int8":
        return pack_int8(weight_NK)
    if precision == INT4 and grid != "qint4":
        return _pack_uint4(weight_NK.to(torch.bfloat16) if grid == PUBLISHED_GRID else weight_NK)
    from engine.wan.quantize_quanto import pack_weight_quanto  # 2 s to import, and only these precisions need it

    return pack_weight_quanto(weight_NK, precision)


def _pack_uint4(weight_NK: torch.Tensor) -> Packed:
    """(codes, two to a byte; scale; value of code 0), groups along K. Rounds where torchao rounds, in the weight's
    dtype.

    With bf16 weights every product is exact in fp32, so dequantizing to bf16 gives torchao's bits. A width that 64 does
    not divide is one group (torchao leaves such a weight alone; Wan has none).
    """
    n, k = weight_NK.shape
    groups = weight_NK.reshape(n, -1, UINT4_GROUP) if k % UINT4_GROUP == 0 else weight_NK.reshape(n, 1, k)
    low = groups.amin(2).clamp(max=0)  # zero itself must be on the grid
    high = groups.amax(2).clamp(min=0)
    scale = ((high - low) / UINT4_TOP).clamp(min=torch.finfo(torch.float32).eps)
    zero = (-(low / scale).round()).clamp(0, UINT4_TOP)
    codes = ((groups * (1.0 / scale).unsqueeze(2)).round() + zero.unsqueeze(2)).clamp(0, UINT4_TOP)
    q = codes.to(torch.uint8).view(n, k)
    scale = scale.float()
    return q[:, 0::2] | (q[:, 1::2] << 4), scale, -zero.float() * scale


def fingerprint(grid: Grid) -> str:
    """Changes when the way this program quantizes to a grid does: a hash of a known matrix after its round trip."""
    sample = torch.from_numpy(keyed_rng(0, "grid").standard_t(4, (32, 256)).astype(np.float32)) * 0.02
    value = unpack_weight(pack(sample, INT4, grid), INT4, torch.float32)
    return hashlib.blake2b(value.numpy().tobytes(), digest_size=8).hexdigest()

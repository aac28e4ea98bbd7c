"""How a frozen weight is packed for storage, by precision: quanto's quantizers in our layout, or our own row-wise
float8."""

import torch

from engine.wan.frozen_linear import Packed, pack_float8
from engine.wan.int4_grids import Grid, pack_on_grid


def pack(weight_NK: torch.Tensor, precision: str, grid: Grid = "qint4") -> Packed:
    """One frozen weight as `engine.wan.frozen_linear.unpack_weight` reads it. `grid` says on which 4-bit grid an
    adapter was made."""
    if precision == "none":
        return (weight_NK,)
    if precision == "float8":
        return pack_float8(weight_NK)
    if precision == "qint4":
        return pack_on_grid(weight_NK, grid)
    from engine.wan.quantize_quanto import pack_weight_quanto  # 2 s to import, and only these precisions need it

    return pack_weight_quanto(weight_NK, precision)

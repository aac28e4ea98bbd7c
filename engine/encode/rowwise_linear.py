"""Linears whose frozen weight is stored in 8 bits with one scale per row.

Memory only: the product runs in the activation's dtype, which holds every 8-bit value exactly. Used for the text
encoder, which runs a few times per job.
"""

import torch
from torch import nn
from torch.nn import functional as F

from engine.weights.model_files import weight_of

STORAGE = {"float8": (torch.float8_e4m3fn, 448.0), "qint8": (torch.int8, 127.0)}  # dtype, largest value
ROWS = 512  # shrunk at a time: in fp32 a whole weight would take as much as four of them in 8 bits, and more than once


def packed_rows(
    raw: torch.Tensor, stored_scale: torch.Tensor | None, precision: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(q, scale) of a weight as stored (out, in): q in 8 bits, scale (out, 1) = absmax of the row / largest value.

    What is stored in e4m3 is taken over into float8 as it is: nothing is rounded twice.
    """
    dtype, largest = STORAGE[precision]
    count = raw.shape[0]
    if raw.dtype == dtype:
        one = torch.ones((), device=raw.device) if stored_scale is None else stored_scale
        return raw.clone(), one.expand(count, 1).contiguous()
    q = torch.empty(raw.shape, dtype=dtype, device=raw.device)
    scale = torch.empty((count, 1), dtype=torch.float32, device=raw.device)
    for begin in range(0, count, ROWS):
        rows = slice(begin, begin + ROWS)
        weight = weight_of(
            raw[rows],
            stored_scale if stored_scale is None or stored_scale.numel() == 1 else stored_scale[rows],
            torch.float32,
        )
        scale[rows] = (weight.abs().amax(1, keepdim=True) / largest).clamp(min=1e-12)
        weight = weight / scale[rows]
        q[rows] = (weight.round() if dtype is torch.int8 else weight).to(dtype)
    return q, scale


class RowwiseLinear(nn.Module):
    """y = (x q^T) scale, with q (out, in) in 8 bits and scale (out, 1) in fp32."""

    weight = None  # UMT5 blocks look at `wo.weight`, and leave anything alone that is no tensor

    def __init__(self, q: torch.Tensor, scale: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("q", q)
        self.register_buffer("scale", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.linear(x, self.get_buffer("q").to(x.dtype))
        return (y.float() * self.get_buffer("scale").view(-1)).to(x.dtype)

"""Linears whose frozen weight is stored in 8 bits with one scale per row.

Memory only: the product runs in the activation's dtype, which holds every 8-bit value exactly. Used for the text encoder,
which runs a few times per job.
"""

import torch
from torch import nn
from torch.nn import functional as F

from engine.sources import weight_of

STORAGE = {"float8": (torch.float8_e4m3fn, 448.0), "qint8": (torch.int8, 127.0)}  # dtype, largest value


def packed_rows(raw: torch.Tensor, stored_scale: torch.Tensor | None, precision: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(q, scale) of a weight as stored (out, in): q in 8 bits, scale (out, 1) = absmax of the row / largest value.

    What is stored in e4m3 is taken over into float8 as it is: nothing is rounded twice.
    """
    dtype, largest = STORAGE[precision]
    if raw.dtype == dtype:
        one = torch.ones((), device=raw.device) if stored_scale is None else stored_scale
        return raw.clone(), one.expand(raw.shape[0], 1).contiguous()
    weight = weight_of(raw, stored_scale, torch.float32)
    scale = (weight.abs().amax(1, keepdim=True) / largest).clamp(min=1e-12)
    q = weight / scale
    return (q.round() if dtype is torch.int8 else q).to(dtype), scale


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

"""Linears whose frozen weight is stored in 8 bits with one scale per row, and dequantized when used.

Memory only: the product runs in the activation's dtype. Used for the text encoder, which runs a few times per job.
"""

import torch
from torch import nn
from torch.nn import functional as F

STORAGE = {"float8": (torch.float8_e4m3fn, 448.0), "qint8": (torch.int8, 127.0)}  # dtype, largest value


class RowwiseLinear(nn.Module):
    """y = x (q * scale)^T + bias, with q (out, in) in 8 bits and scale (out, 1): absmax of the row / largest value."""

    weight = None  # UMT5 blocks look at `wo.weight`, and leave anything alone that is no tensor

    def __init__(self, linear: nn.Linear, precision: str, *, device: torch.device) -> None:
        super().__init__()
        dtype, largest = STORAGE[precision]
        weight = linear.weight.data.to(device).float()
        scale = (weight.abs().amax(1, keepdim=True) / largest).clamp(min=1e-12)
        q = weight / scale
        self.register_buffer("q", (q.round() if dtype is torch.int8 else q).to(dtype))
        self.register_buffer("scale", scale)
        self.bias = linear.bias
        self.compute_dtype = linear.weight.dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = (self.get_buffer("q").to(torch.float32) * self.get_buffer("scale")).to(x.dtype)
        return F.linear(x, weight, self.bias)


def shrink_linears(model: nn.Module, precision: str, *, device: torch.device) -> None:
    """Replace every Linear of `model` in place, one at a time, so that both copies of only one exist at once."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, RowwiseLinear(child, precision, device=device))

"""Weights quantized by optimum-quanto, as the plain tensors that `engine.wan.frozen_linear.unpack_weight` reads.

quanto chooses the scales and makes the codes; its tensor classes are left out, because unpacking theirs compiles a C++
extension (on CUDA with nvcc), and their matrix kernels lose to a dequantization inside the compiled block.

Group scales of qint4 are ours, of least squared error: never worse than quanto's default, the range of the group. By
which precision a weight is packed how is decided in `engine.wan.quantize`.

N outputs, K inputs, G groups of a row.
"""

from typing import Any

import torch
from optimum.quanto import AbsmaxOptimizer, MaxOptimizer, qfloat8, qint4, qint8, quantize_weight

from engine.wan.frozen_linear import Packed

SMALLEST_SCALE = 1e-12  # of a row or group that is constant; quanto itself divides by zero there
LARGEST_GROUP, GROUP_STEP, SMALLEST_GROUP = 128, 32, 32  # quanto's own rule for a linear (QModuleMixin)
EIGHT_BITS = {"qfloat8": qfloat8, "qint8": qint8}
# least_squares works on this many weights at a time; what fits a CPU's cache
ELEMENTS_AT_ONCE = {True: 1 << 24, False: 1 << 19}


def group_size(inputs: int) -> int | None:
    """Inputs per scale of qint4, as quanto chooses for a linear: 128, else 96, 64 or 32 where it divides, None for the
    whole row."""
    if inputs <= LARGEST_GROUP:
        return None
    return next((g for g in range(LARGEST_GROUP, SMALLEST_GROUP - 1, -GROUP_STEP) if inputs % g == 0), None)


def pack_weight_quanto(weight_NK: torch.Tensor, precision: str) -> Packed:
    """One frozen weight by quanto's quantizers, on any device. Scales are fp32; with 8 bits absmax / largest value."""
    w_NK = weight_NK.detach().float()
    assert w_NK.ndim == 2 and w_NK.shape[0] > 1, w_NK.shape
    if precision in EIGHT_BITS:
        qtype = EIGHT_BITS[precision]
        scale_N1 = AbsmaxOptimizer()(w_NK, qtype=qtype, axis=0).clamp(min=SMALLEST_SCALE)
        # optimized=False: else quanto may pick a class with a CUDA kernel of its own, and compile it
        return quantize_weight(w_NK, qtype, 0, scale_N1, optimized=False)._data, scale_N1
    assert precision == "qint4", precision
    n, k = w_NK.shape
    size = group_size(k) or k
    scale, shift = LeastSquares()(w_NK, qtype=qint4, axis=0, group_size=size)
    codes_NK = _codes(w_NK.view(-1, size), scale, shift).view(n, k)
    assert k % 2 == 0, "two codes share a byte"
    return codes_NK[:, 0::2] | (codes_NK[:, 1::2] << 4), scale.view(n, -1), -shift.view(n, -1)


def _codes(groups: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """0..15 by quanto's own operator: round((w + shift) / scale)."""
    codes: torch.Tensor = torch.ops.quanto.quantize_affine(
        groups, bits=4, axis=0, group_size=None, scale=scale, shift=shift
    )
    return codes


class LeastSquares(MaxOptimizer):
    """The grid of least squared error, for each group by itself.

    The best of the full range and some narrower ones (outliers clipped), then refined by alternation, as Lloyd's
    algorithm on an even grid: codes are the nearest to the weights for a given grid, the best grid for given codes is
    the straight line that regresses weights on codes. The best grid seen is kept, and the full range is among those
    seen.
    """

    starts = (1.0, 0.9, 0.8, 0.7, 0.6)  # share of the full range, around its middle
    rounds = 6  # twice the starts and four times the rounds gain another 0.4% of the error

    def optimize(self, base: torch.Tensor, qtype: Any, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert axis == 0, axis
        rows = max(1, ELEMENTS_AT_ONCE[base.is_cuda] // base.shape[1])
        parts = [self._fit(part, qtype) for part in base.split(rows)]
        scale, shift = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return scale, shift

    def _fit(self, base: torch.Tensor, qtype: Any) -> tuple[torch.Tensor, torch.Tensor]:
        full_scale, full_shift = MaxOptimizer.optimize(self, base, qtype, 0)
        full_scale = full_scale.clamp(min=SMALLEST_SCALE)
        middle = 2 ** (qtype.bits - 1) - 0.5  # of the codes
        best = torch.full_like(full_scale, torch.inf), full_scale, full_shift
        for start in self.starts:
            best, _ = _tried(base, best, full_scale * start, full_shift + full_scale * (start - 1) * middle)
        mean = base.mean(1, keepdim=True)
        _, scale, shift = best
        for _ in range(self.rounds):
            best, codes = _tried(base, best, scale, shift)
            centre = codes.mean(1, keepdim=True)
            codes -= centre
            slope = (codes * (base - mean)).sum(1, keepdim=True) / codes.square().sum(1, keepdim=True).clamp(min=1e-6)
            # one code for the whole group: nothing to regress on
            scale = torch.where(slope > SMALLEST_SCALE, slope, scale)
            shift = scale * centre - mean
        best, _ = _tried(base, best, scale, shift)
        return best[1], best[2]


_Best = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # squared error, scale, shift of each group


def _tried(base: torch.Tensor, best: _Best, scale: torch.Tensor, shift: torch.Tensor) -> tuple[_Best, torch.Tensor]:
    """(the better of the two grids, group by group; the codes on this one)."""
    codes = _codes(base, scale, shift).to(base.dtype)
    error = torch.addcmul(-shift, scale, codes).sub_(base).square_().sum(1, keepdim=True)
    better = error < best[0]
    return (
        torch.where(better, error, best[0]),
        torch.where(better, scale, best[1]),
        torch.where(better, shift, best[2]),
    ), codes

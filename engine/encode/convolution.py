"""The 3x3x3 convolutions of the VAE's encoder, with what stands before and after each: bias, norm and activation, the
sum of a residual block. By our Triton kernel (`engine.kernels.triton_conv`) where that is the faster one on this card,
else by torch's.

Frames are channels last, (B, T, H, W, C). A convolution reads a *padded* run: its T frames with the two before them in
front, and zeros a pixel wide around each. What comes before writes into it, so that nothing is copied or padded.

B batch, T frames, P those of them that are held, H W pixels, C channels, N channels of the output.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from engine.kernels.triton_conv import Tile

HISTORY = 2  # frames before a run that a 3-frame causal convolution looks at
SLACK = 4  # pixels behind a padded run's last one that our kernel may read
# channels of the first input, and of the same padded: three fall off the tensor cores' path, and zeros change nothing
# but the speed
RGB, CHANNELS = 3, 8


@cache
def _compiled(function: Any) -> Any:
    """A variant for each number of channels, for the compiler takes a Parameter's shape for a constant, and for runs of
    one frame."""
    return torch.compile(function, dynamic=True)


def norm_silu(x_BPHWC: torch.Tensor, bias_C: torch.Tensor | None, gamma_C: torch.Tensor) -> torch.Tensor:
    """silu(y / |y| * sqrt(C) * gamma) with y = x + bias, the norm over channels, in fp32 inside.

    WanRMS_norm and the activation after it; the bias is that of the convolution before, which cuDNN would add in a pass
    of its own.
    """
    x = x_BPHWC.float() if bias_C is None else x_BPHWC.float() + bias_C.float()
    scale = x.shape[-1] ** 0.5 / x.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-12)
    return F.silu(x * scale * gamma_C.float()).to(x_BPHWC.dtype)


def add_bias(y_BTHWN: torch.Tensor, bias_N: torch.Tensor, beside_BTHWN: torch.Tensor) -> torch.Tensor:
    """y + bias + beside in one pass: the end of a residual block."""
    return (y_BTHWN.float() + bias_N.float() + beside_BTHWN.float()).to(y_BTHWN.dtype)


def make_padded(size_BTHWC: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """(B, 2 + T, H + 2, W + 2, C), its zeros around each frame written."""
    B, T, H, W, C = size_BTHWC
    size = (B, HISTORY + T, H + 2, W + 2, C)
    pixels = B * (HISTORY + T) * (H + 2) * (W + 2)
    padded = like.new_empty((pixels + SLACK) * C)[: pixels * C].view(size)
    padded[:, :, :: H + 1] = 0
    padded[:, :, 1:-1, :: W + 1] = 0
    return padded


def inside(padded: torch.Tensor) -> torch.Tensor:
    """The frames of a padded run, without those in front."""
    return padded[:, HISTORY:, 1:-1, 1:-1]


def repeat_last(padded: torch.Tensor, held: int) -> None:
    """So many frames of a padded run are written: the last of them goes on to its end."""
    padded[:, HISTORY + held :] = padded[:, HISTORY + held - 1 : HISTORY + held]


def fill_normed(
    x_BPHWC: torch.Tensor, bias_C: torch.Tensor | None, gamma_C: torch.Tensor, padded: torch.Tensor
) -> None:
    """`norm_silu` into a padded run, whose last frame goes on to its end."""
    if x_BPHWC.is_cuda:
        from engine.kernels import triton_conv  # Triton comes with the CUDA builds of torch alone

        triton_conv.norm_silu(x_BPHWC.contiguous(), bias_C, gamma_C, padded)
        return
    held = x_BPHWC.shape[1]
    inside(padded)[:, :held] = norm_silu(x_BPHWC, bias_C, gamma_C)
    repeat_last(padded, held)


def channels_of(conv: nn.Conv3d) -> int:
    """Of the padded runs that it reads."""
    return CHANNELS if conv.in_channels == RGB else conv.in_channels


class Convolution:
    """One of them. `tile` is that of our kernel; None: torch's convolution."""

    def __init__(self, conv: nn.Conv3d, tile: "Tile | None", *, compiled: bool) -> None:
        assert conv.bias is not None
        weight = conv.weight.data
        if zeros := channels_of(conv) - conv.in_channels:
            weight = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, zeros))
        if weight.is_cuda:
            weight = weight.contiguous(memory_format=torch.channels_last_3d)
        if weight.shape == conv.weight.shape:
            conv.weight.data = weight  # one copy of it
            weight = conv.weight
        self.weight, self.bias, self.tile = weight, conv.bias, tile
        self._add_bias = _compiled(add_bias) if compiled else add_bias
        if tile:
            from engine.kernels import triton_conv

            self._packed = triton_conv.packed(weight.data, tile.columns)  # a view, where no zeros are added

    @property
    def channels(self) -> int:
        return self.weight.shape[1]

    def __call__(
        self, padded: torch.Tensor, beside_BTHWN: torch.Tensor | None = None, *, edge: bool = False
    ) -> torch.Tensor:
        """(B, T, H, W, N), with its bias, added to `beside`. `edge`: another column and line of zeros, for a layer that
        halves the sides."""
        if self.tile:
            from engine.kernels import triton_conv

            return triton_conv.conv(padded, self._packed, self.bias, beside_BTHWN, self.tile, int(edge))
        y = self._plain(padded)
        y = y.add_(self.bias) if beside_BTHWN is None else self._add_bias(y, self.bias, beside_BTHWN)
        return F.pad(y, (0, 0, 0, 1, 0, 1)) if edge else y

    def normed(self, padded: torch.Tensor, gamma_N: torch.Tensor, into: torch.Tensor) -> None:
        """With norm and activation after it, into another padded run, whose last frame goes on to its end."""
        if self.tile and self.weight.shape[0] <= self.tile.outputs + self.tile.rest:
            from engine.kernels import triton_conv

            triton_conv.conv_norm_silu(padded, self._packed, self.bias, gamma_N, into, self.tile)
            repeat_last(into, padded.shape[1] - HISTORY)
        elif self.tile:
            fill_normed(self(padded), None, gamma_N, into)
        else:
            fill_normed(self._plain(padded), self.bias, gamma_N, into)

    def _plain(self, padded: torch.Tensor) -> torch.Tensor:
        y = F.conv3d(padded.permute(0, 4, 1, 2, 3), self.weight)
        return y.permute(0, 2, 3, 4, 1).contiguous()  # as it lies, where convolutions take channels last

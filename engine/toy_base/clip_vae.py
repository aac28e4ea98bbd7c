"""Whole clips through AutoencoderKLWan at once, to train it: the same function as diffusers' runs of four frames, in
few large kernels and without caches.

A causal 3x3x3 convolution is done as a 3x3 one over three frames side by side in its channels, since GPUs have far
better two-dimensional kernels for so few channels. A single frame needs the last third of the weights alone. B batch, C
channels, T frames, H W pixels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanResample
from torch import nn
from torch.nn import functional as F


@contextmanager
def flat_convolutions() -> Iterator[None]:
    """Inside, every WanCausalConv3d of this process runs as above. `encode` and `decode` are to be called inside."""
    before = WanCausalConv3d.forward
    WanCausalConv3d.forward = _causal
    try:
        yield
    finally:
        WanCausalConv3d.forward = before


def encode(vae: AutoencoderKLWan, video_BCTHW: torch.Tensor) -> torch.Tensor:
    """Moments (B, 32, F, h, w) of clips of 4n+1 frames."""
    encoder = vae.encoder
    x = encoder.conv_in(video_BCTHW)
    for layer in encoder.down_blocks:
        x = _resample(layer, x) if isinstance(layer, WanResample) else layer(x)
    return vae.quant_conv(encoder.conv_out(F.silu(encoder.norm_out(encoder.mid_block(x)))))


def decode(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Clips (B, 3, T, H, W), not clamped."""
    decoder = vae.decoder
    x = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latents)))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = resnet(x)
        if block.upsamplers is not None:
            x = _resample(block.upsamplers[0], x)
    return decoder.conv_out(F.silu(decoder.norm_out(x)))


def _conv2d(x_NCHW: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: Any = 0) -> torch.Tensor:
    if missing := -weight.shape[1] % 8:  # off the tensor cores' path otherwise
        x_NCHW, weight = F.pad(x_NCHW, (0, 0, 0, 0, 0, missing)), F.pad(weight, (0, 0, 0, 0, 0, missing))
    last = torch.channels_last
    return F.conv2d(x_NCHW.contiguous(memory_format=last), weight.contiguous(memory_format=last), bias, padding=padding)


def _frames(x_BCTHW: torch.Tensor) -> torch.Tensor:
    return x_BCTHW.permute(0, 2, 1, 3, 4)


def _clip(x_NCHW: torch.Tensor, batch: int) -> torch.Tensor:
    return x_NCHW.view(batch, -1, *x_NCHW.shape[1:]).permute(0, 2, 1, 3, 4)


def _causal(conv: nn.Conv3d, x_BCTHW: torch.Tensor, cache_x: None = None) -> torch.Tensor:
    """A WanCausalConv3d of stride 1 over a whole clip."""
    weight, (B, _, T, H, W) = conv.weight, x_BCTHW.shape
    y = _frames(x_BCTHW)
    if weight.shape[2] == 1 or T == 1:
        flat = weight[:, :, -1]
    else:
        before = F.pad(y, (0, 0, 0, 0, 0, 0, 2, 0))
        y, flat = torch.cat([before[:, k : k + T] for k in range(3)], 2), weight.transpose(1, 2).flatten(1, 2)
    return _clip(_conv2d(y.reshape(B * T, -1, H, W), flat, conv.bias, (weight.shape[3] // 2, weight.shape[4] // 2)), B)


def _resample(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Down: halve the sides, then the frames but the first. Up: double the frames but the first, then the sides."""
    B, C, T, H, W = x.shape
    if layer.mode == "upsample3d" and T > 1:
        y = _causal(layer.time_conv, x[:, :, 1:]).reshape(B, 2, C, T - 1, H, W)
        x = torch.cat([x[:, :, :1], y.permute(0, 2, 3, 1, 4, 5).reshape(B, C, 2 * (T - 1), H, W)], 2)
        T = x.shape[2]
    x = _clip(layer.resample(_frames(x).reshape(B * T, C, H, W).contiguous(memory_format=torch.channels_last)), B)
    if layer.mode == "downsample3d" and T > 1:
        y = _frames(x)
        three = torch.cat([y[:, 0 : T - 2 : 2], y[:, 1 : T - 1 : 2], y[:, 2::2]], 2).flatten(0, 1)
        x = torch.cat(
            [
                x[:, :, :1],
                _clip(_conv2d(three, layer.time_conv.weight.transpose(1, 2).flatten(1, 2), layer.time_conv.bias), B),
            ],
            2,
        )
    return x

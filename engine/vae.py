"""The Wan VAE's encoder, run for speed: many frames at a time, channels last, norm and activation fused.

The same function as diffusers' AutoencoderKLWan.encode, which takes 4 frames at a time: the encoder is causal in time, so
any cut into runs gives the same latents as long as each convolution is handed the two frames before its run. A run here is
as many frames as the plan has memory for.

B batch, C channels, T frames, H W pixels, F latent frames, h w latent sides.
"""

from functools import cache
from itertools import pairwise
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanResample, WanResidualBlock
from torch import nn
from torch.nn import functional as F

HISTORY = 2  # frames before a run that a 3-frame causal convolution looks at


def norm_silu(x_BCTHW: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """silu(x / |x| * sqrt(C) * gamma), the norm over channels, in fp32 inside (WanRMS_norm and the activation after it)."""
    x = x_BCTHW.float()
    scale = x.shape[1] ** 0.5 / x.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12)
    return F.silu(x * scale * gamma.float()).to(x_BCTHW.dtype)


@cache
def _compiled(function: Any) -> Any:
    return torch.compile(function, dynamic=True)


class ClipEncoder:
    """Encodes whole clips. `frames` is how many pixel frames go through at a time, a multiple of 4."""

    def __init__(self, vae: AutoencoderKLWan, *, frames: int, compiled: bool) -> None:
        assert frames >= 4 and frames % 4 == 0, frames
        assert vae.config.patch_size is None, "the 16-channel Wan VAE has no patches"
        self.vae, self.frames = vae, frames
        self._norm_silu = _compiled(norm_silu) if compiled else norm_silu
        self._last = torch.channels_last_3d if next(vae.parameters()).is_cuda else torch.contiguous_format
        for module in vae.encoder.modules():
            if isinstance(module, nn.Conv3d):
                module.weight.data = module.weight.data.contiguous(memory_format=self._last)
            elif isinstance(module, nn.Conv2d) and self._last is torch.channels_last_3d:
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def moments(self, video_BCTHW: torch.Tensor) -> torch.Tensor:
        """Mean and log-variance (B, 2 x 16, F, h, w) of clips of 4n+1 frames, in the VAE's dtype."""
        T = video_BCTHW.shape[2]
        assert T % 4 == 1, T
        history: dict[int, torch.Tensor] = {}
        cuts = [0, *range(1 + self.frames, T, self.frames), T]  # the first run has one frame more
        runs = [video_BCTHW[:, :, a:b].to(self.vae.dtype, memory_format=self._last) for a, b in pairwise(cuts) if b > a]
        out = [self._run(run, history, first=i == 0) for i, run in enumerate(runs)]
        return self.vae.quant_conv(torch.cat(out, dim=2))

    def _run(self, x: torch.Tensor, history: dict[int, torch.Tensor], *, first: bool) -> torch.Tensor:
        encoder = self.vae.encoder
        x = self._causal(encoder.conv_in, x, history)
        for layer in encoder.down_blocks:
            x = self._layer(layer, x, history, first=first)
        middle = encoder.mid_block
        x = self._layer(middle.resnets[0], x, history, first=first)
        for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
            x = self._layer(resnet, attention(x), history, first=first)
        return self._causal(encoder.conv_out, self._norm_silu(x, encoder.norm_out.gamma), history)

    def _layer(self, layer: nn.Module, x: torch.Tensor, history: dict[int, torch.Tensor], *, first: bool) -> torch.Tensor:
        if isinstance(layer, WanResidualBlock):
            h = self._causal(layer.conv1, self._norm_silu(x, layer.norm1.gamma), history)
            h = self._causal(layer.conv2, self._norm_silu(h, layer.norm2.gamma), history)
            return h.add_(layer.conv_shortcut(x))
        if isinstance(layer, WanResample):
            return self._downsample(layer, x, history, first=first)
        assert isinstance(layer, WanAttentionBlock), type(layer)
        return layer(x)

    def _causal(self, conv: Any, x: torch.Tensor, history: dict[int, torch.Tensor]) -> torch.Tensor:
        """A 3x3x3 convolution that sees the past only; `history` keeps the last two frames for the next run."""
        before = history.get(id(conv))
        if before is None:
            before = x.new_zeros(x.shape[0], x.shape[1], HISTORY, *x.shape[3:])
        joined = torch.cat([before, x], dim=2)
        history[id(conv)] = joined[:, :, -HISTORY:].clone()
        return F.conv3d(joined, conv.weight, conv.bias, padding=(0, 1, 1))

    def _downsample(self, layer: Any, x: torch.Tensor, history: dict[int, torch.Tensor], *, first: bool) -> torch.Tensor:
        """Halve the sides, and the frames but for the very first, which stands alone."""
        B, C, T, H, W = x.shape
        flat = x.transpose(1, 2).reshape(B * T, C, H, W)
        flat = layer.resample(flat)
        x = flat.view(B, T, *flat.shape[1:]).transpose(1, 2)
        if layer.mode != "downsample3d":
            return x
        last = x[:, :, -1:].clone()
        if first:
            paired = F.conv3d(x, layer.time_conv.weight, layer.time_conv.bias, stride=(2, 1, 1)) if T > 1 else x[:, :, :0]
            out = torch.cat([x[:, :, :1], paired], dim=2)
        else:
            out = F.conv3d(torch.cat([history[id(layer)], x], dim=2), layer.time_conv.weight, layer.time_conv.bias, stride=(2, 1, 1))
        history[id(layer)] = last
        return out

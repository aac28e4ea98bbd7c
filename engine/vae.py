"""The Wan VAE's encoder, run for speed: several frames at a time, channels last, norm and activation fused, the widest
pictures' convolutions in two dimensions.

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

FOLD_UP_TO = 96  # input channels: with so few, a 2-D convolution over three frames' channels at once is the faster one
PAIR_FRAMES = 16  # with fewer at a time, two clips at once would need more memory than the run saves
HISTORY = 2  # frames before a run that a 3-frame causal convolution looks at


def norm_silu(x_BCTHW: torch.Tensor, bias_C: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """silu(y / |y| * sqrt(C) * gamma) with y = x + bias, the norm over channels, in fp32 inside.

    WanRMS_norm and the activation after it; the bias is that of the convolution before, which cuDNN would add in a pass
    of its own.
    """
    x = x_BCTHW.float() + bias_C.float().view(-1, 1, 1, 1)
    scale = x.shape[1] ** 0.5 / x.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12)
    return F.silu(x * scale * gamma.float().view(-1, 1, 1, 1)).to(x_BCTHW.dtype)


def add_bias(h_BCTHW: torch.Tensor, bias_C: torch.Tensor, x_BCTHW: torch.Tensor) -> torch.Tensor:
    """h + bias + x in one pass: the end of a residual block."""
    return (h_BCTHW.float() + bias_C.float().view(-1, 1, 1, 1) + x_BCTHW.float()).to(x_BCTHW.dtype)


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
        self._add_bias = _compiled(add_bias) if compiled else add_bias
        self._last = torch.channels_last_3d if next(vae.parameters()).is_cuda else torch.contiguous_format
        for module in vae.encoder.modules():
            if isinstance(module, nn.Conv3d):
                module.weight.data = module.weight.data.contiguous(memory_format=self._last)
            elif isinstance(module, nn.Conv2d) and self._last is torch.channels_last_3d:
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)

        # As plain tensors: the compiler takes every Parameter's shape for a constant, and would compile for each.
        self._plain = {id(p): p.detach().flatten() for name, p in vae.encoder.named_parameters() if p.numel() == p.shape[0]}
        self._folded = {id(m.weight): self._fold(m.weight) for m in vae.encoder.modules() if isinstance(m, nn.Conv3d) and m.kernel_size == (3, 3, 3) and m.in_channels <= FOLD_UP_TO}

    def _fold(self, weight: torch.Tensor) -> torch.Tensor:
        """(out, in, 3, 3, 3) -> (out, 3 in and zeros up to a multiple of 8, 3, 3): its three frames side by side among the channels."""
        flat = weight.detach().transpose(1, 2).flatten(1, 2)
        flat = F.pad(flat, (0, 0, 0, 0, 0, -flat.shape[1] % 8))  # other widths fall off the tensor cores' path
        return flat.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def moments(self, video_BCTHW: torch.Tensor) -> torch.Tensor:
        """Mean and log-variance (B, 2 x 16, F, h, w) of clips of 4n+1 frames, in the VAE's dtype."""
        history: dict[int, torch.Tensor] = {}
        out = [self._run(run.to(self.vae.dtype), history, first=i == 0) for i, run in enumerate(self._runs(video_BCTHW, self.frames))]
        return self.vae.quant_conv(torch.cat(out, dim=2))

    @torch.no_grad()
    def pair(self, video_BCTHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Moments of the clips, and of their first frame followed by zeros, as one batch: the first frame goes through once."""
        if self.frames < PAIR_FRAMES:
            still = torch.zeros_like(video_BCTHW)
            still[:, :, 0] = video_BCTHW[:, :, 0]
            return self.moments(video_BCTHW), self.moments(still)
        history: dict[int, torch.Tensor] = {}
        first, *runs = self._runs(video_BCTHW, self.frames // 2 // 4 * 4, alone=True)
        out = [self._twice(self._run(first.to(self.vae.dtype), history, first=True))]
        history = {key: self._twice(value) for key, value in history.items()}
        for run in runs:
            out.append(self._run(torch.cat([run, torch.zeros_like(run)]).to(self.vae.dtype), history, first=False))
        target, still = self.vae.quant_conv(torch.cat(out, dim=2)).chunk(2)
        return target, still

    def _twice(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        return x_BCTHW.repeat(2, 1, 1, 1, 1).contiguous(memory_format=self._last)

    def _runs(self, video_BCTHW: torch.Tensor, frames: int, *, alone: bool = False) -> list[torch.Tensor]:
        """The clips cut into runs of `frames`; the first run has the first frame besides, or holds nothing else when `alone`."""
        T = video_BCTHW.shape[2]
        assert T % 4 == 1, T
        cuts = sorted({0, *range(1 if alone else 1 + frames, T, frames), T})
        return [video_BCTHW[:, :, a:b] for a, b in pairwise(cuts)]

    def _run(self, x: torch.Tensor, history: dict[int, torch.Tensor], *, first: bool) -> torch.Tensor:
        encoder = self.vae.encoder
        x = self._causal(encoder.conv_in.weight, x, history) + encoder.conv_in.bias.view(-1, 1, 1, 1)
        for layer in encoder.down_blocks:
            x = self._layer(layer, x, history, first=first)
        middle = encoder.mid_block
        x = self._layer(middle.resnets[0], x, history, first=first)
        for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
            x = self._layer(resnet, attention(x), history, first=first)
        last = encoder.conv_out
        return self._causal(last.weight, self._normed(x, None, encoder.norm_out), history) + last.bias.view(-1, 1, 1, 1)

    def _normed(self, x: torch.Tensor, bias: torch.Tensor | None, norm: Any) -> torch.Tensor:
        gamma = self._plain[id(norm.gamma)]
        return self._norm_silu(x, torch.zeros_like(gamma) if bias is None else self._plain[id(bias)], gamma)

    def _layer(self, layer: nn.Module, x: torch.Tensor, history: dict[int, torch.Tensor], *, first: bool) -> torch.Tensor:
        if isinstance(layer, WanResidualBlock):
            h = self._causal(layer.conv1.weight, self._normed(x, None, layer.norm1), history)
            h = self._causal(layer.conv2.weight, self._normed(h, layer.conv1.bias, layer.norm2), history)
            return self._add_bias(h, self._plain[id(layer.conv2.bias)], layer.conv_shortcut(x))
        if isinstance(layer, WanResample):
            return self._downsample(layer, x, history, first=first)
        assert isinstance(layer, WanAttentionBlock), type(layer)
        return layer(x)

    def _causal(self, weight: torch.Tensor, x: torch.Tensor, history: dict[int, torch.Tensor]) -> torch.Tensor:
        """A 3x3x3 convolution that sees the past only, without its bias; `history` keeps the last two frames for the next run."""
        before = history.get(id(weight))
        if before is None:
            before = x.new_zeros((x.shape[0], x.shape[1], HISTORY, *x.shape[3:]))
        joined = torch.cat([before, x], dim=2).contiguous(memory_format=self._last)
        history[id(weight)] = joined[:, :, -HISTORY:].clone(memory_format=self._last)
        folded = self._folded.get(id(weight))
        return F.conv3d(joined, weight, padding=(0, 1, 1)) if folded is None else self._folded_conv(folded, joined)

    def _folded_conv(self, weight_OKHW: torch.Tensor, joined_BCTHW: torch.Tensor) -> torch.Tensor:
        """The same convolution in two dimensions: each frame and the two before it side by side among the channels."""
        B, T = joined_BCTHW.shape[0], joined_BCTHW.shape[2]
        row = joined_BCTHW.permute(0, 2, 3, 4, 1).flatten(0, 1)  # all clips' frames in a row: what mixes two clips is left out below
        side = [row[i : B * T - HISTORY + i] for i in range(HISTORY + 1)]
        if missing := weight_OKHW.shape[1] - len(side) * row.shape[3]:
            side.append(row.new_zeros((*side[0].shape[:3], missing)))
        out = F.conv2d(torch.cat(side, dim=3).permute(0, 3, 1, 2), weight_OKHW, padding=1).permute(0, 2, 3, 1)
        clips = [out[b * T : (b + 1) * T - HISTORY] for b in range(B)]
        return (torch.stack(clips) if B > 1 else clips[0].unsqueeze(0)).permute(0, 4, 1, 2, 3)

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

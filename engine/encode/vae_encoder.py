"""The Wan VAE, read from its files, and its encoder run for speed: several frames at a time, channels last, norm and
activation fused. Its decoder is diffusers' own, see engine.encode.latents.

The same function as diffusers' AutoencoderKLWan.encode, which takes 4 frames at a time: the encoder is causal in time,
so any cut into runs gives the same latents as long as each convolution is handed the two frames before its run. A run
here is as many frames as the plan has memory for.

The conditioning of a clip is its first frame and then nothing but zeros. A convolution over three frames that are all
alike gives the same each time: behind a still ending, only as many frames are computed as the change before it still
reaches, two more with each convolution. Of 41 frames the widest layers compute 4 to 12.

B batch, C channels, T frames, P those of them that are held, H W pixels, F latent frames, h w latent sides.
"""

from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanResample,
    WanResidualBlock,
    WanUpsample,
)
from torch import nn
from torch.nn import functional as F

from engine.encode.tensor_cache import key_of
from engine.system.device import fixed_order
from engine.system.placement import Placement
from engine.weights.load_expert import require_numbers
from engine.weights.model_files import ModelFiles

CHANNELS = 8  # of the padded input
HISTORY = 2  # frames before a run that a 3-frame causal convolution looks at


def load_vae(source: ModelFiles, placement: Placement) -> AutoencoderKLWan:
    """The base model's VAE, frozen, in eval mode. Raises UserError."""
    part = source.part("vae")
    with torch.device("meta"):
        model: Any = AutoencoderKLWan.from_config(part.config)
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    part.require(shapes)
    state = {name: part.stored[name].read(placement.dtype) for name in shapes}
    for name, tensor in state.items():
        require_numbers(tensor, name, part.stored[name].file)
    model.load_state_dict(state, assign=True)
    # they copy to fp32 to repeat pixels, which is exact in any type and takes half the memory
    for module in model.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, WanUpsample):
                setattr(module, name, nn.Upsample(scale_factor=child.scale_factor, mode=child.mode))
    return model.requires_grad_(False).eval().to(placement.device)


def vae_identity(source: ModelFiles) -> str:
    """Of all that turns pixels into latents: the weights, and the configuration with its mean and deviation of
    latents."""
    part = source.part("vae")
    return key_of("vae", part.identity(), sorted(part.config.items()))


def norm_silu(x_BCTHW: torch.Tensor, bias_C: torch.Tensor | None, gamma: torch.Tensor) -> torch.Tensor:
    """silu(y / |y| * sqrt(C) * gamma) with y = x + bias, the norm over channels, in fp32 inside.

    WanRMS_norm and the activation after it; the bias is that of the convolution before, which cuDNN would add in a pass
    of its own.
    """
    x = x_BCTHW.float() if bias_C is None else x_BCTHW.float() + bias_C.float().view(-1, 1, 1, 1)
    scale = x.shape[1] ** 0.5 / x.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12)
    return F.silu(x * scale * gamma.float()).to(x_BCTHW.dtype)


def add_bias(h_BCTHW: torch.Tensor, bias_C: torch.Tensor, x_BCTHW: torch.Tensor) -> torch.Tensor:
    """h + bias + x in one pass: the end of a residual block."""
    return (h_BCTHW.float() + bias_C.float().view(-1, 1, 1, 1) + x_BCTHW.float()).to(x_BCTHW.dtype)


class Run(NamedTuple):
    """Some frames of a clip: `x`, whose last one is repeated until there are `length`."""

    x_BCPHW: torch.Tensor
    length: int

    @property
    def still(self) -> bool:
        """Whether it ends with frames that are alike."""
        return self.x_BCPHW.shape[2] < self.length


class Before(NamedTuple):
    """What a layer has to know of the run before."""

    frames: torch.Tensor  # its last ones; one stands for any number of the same
    still: bool


History = dict[int, Before]


@cache
def _compiled(function: Any) -> Any:
    """A variant for each number of channels, for the compiler takes a Parameter's shape for a constant, and for runs of
    one frame."""
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

        # Three input channels fall off the tensor cores' path; zeros up to 8 change nothing but the speed.
        first = vae.encoder.conv_in.weight
        self._first_weight = torch.cat(
            [first, first.new_zeros(first.shape[0], CHANNELS - first.shape[1], *first.shape[2:])], dim=1
        ).contiguous(memory_format=self._last)

    @torch.no_grad()
    # else the compiler times sums in several orders, and a resume after its cache is lost may encode otherwise
    @fixed_order()
    def moments(self, video_BCPHW: torch.Tensor, frames: int = 0) -> torch.Tensor:
        """Mean and log-variance (B, 2 x 16, F, h, w) of clips of 4n+1 frames, in the VAE's dtype: as many as are given,
        or the last one goes on until there are `frames`."""
        held = video_BCPHW.shape[2]
        T = frames or held
        assert T % 4 == 1 and held <= T, (held, T)
        history: History = {}
        cuts = [0, *range(1 + self.frames, T, self.frames), T]  # the first run has one frame more
        runs = [Run(video_BCPHW[:, :, min(a, held - 1) : min(b, held)], b - a) for a, b in pairwise(cuts) if b > a]
        out = [self._run(run._replace(x_BCPHW=self._padded(run.x_BCPHW)), history) for run in runs]
        return self.vae.quant_conv(torch.cat(out, dim=2))

    def _run(self, run: Run, history: History) -> torch.Tensor:
        encoder = self.vae.encoder
        x = self._causal(self._first_weight, run, history)
        x = x._replace(x_BCPHW=x.x_BCPHW + encoder.conv_in.bias.view(-1, 1, 1, 1))
        for layer in encoder.down_blocks:
            x = self._layer(layer, x, history)
        middle = encoder.mid_block
        x = self._layer(middle.resnets[0], x, history)
        for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
            x = self._layer(resnet, self._layer(attention, x, history), history)
        last = encoder.conv_out
        x = x._replace(x_BCPHW=self._norm_silu(x.x_BCPHW, None, encoder.norm_out.gamma))
        out, length = self._causal(last.weight, x, history)
        return self._first(Run(out + last.bias.view(-1, 1, 1, 1), length), length)

    def _padded(self, video_BCTHW: torch.Tensor) -> torch.Tensor:
        B, C, T, H, W = video_BCTHW.shape
        out = torch.zeros((B, CHANNELS, T, H, W), dtype=self.vae.dtype, device=video_BCTHW.device).contiguous(
            memory_format=self._last
        )
        out[:, :C] = video_BCTHW
        return out

    def _first(self, run: Run, count: int) -> torch.Tensor:
        """The first frames of a run, (B, C, count, H, W), in the layout that convolutions take."""
        x, held = run.x_BCPHW, run.x_BCPHW.shape[2]
        if count <= held:
            return x[:, :, :count]
        size = (*x.shape[:2], count, *x.shape[3:])
        out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=self._last)
        out[:, :, :held], out[:, :, held:] = x, x[:, :, -1:]
        return out

    def _layer(self, layer: nn.Module, run: Run, history: History) -> Run:
        x, length = run
        if isinstance(layer, WanResidualBlock):
            h = Run(self._norm_silu(x, None, layer.norm1.gamma), length)
            h = self._causal(layer.conv1.weight, h, history)
            h = Run(self._norm_silu(h.x_BCPHW, layer.conv1.bias, layer.norm2.gamma), length)
            y = self._causal(layer.conv2.weight, h, history).x_BCPHW
            beside = self._first(Run(layer.conv_shortcut(x), length), y.shape[2])
            return Run(self._add_bias(y, layer.conv2.bias, beside), length)
        if isinstance(layer, WanResample):
            return self._downsample(layer, run, history)
        assert isinstance(layer, WanAttentionBlock), type(layer)
        return Run(layer(x), length)

    def _causal(self, weight: torch.Tensor, run: Run, history: History) -> Run:
        """A 3x3x3 convolution that sees the past only, without its bias; `history` keeps the last two frames for the
        next run."""
        (B, C, P, H, W), length = run.x_BCPHW.shape, run.length
        before = history.get(id(weight))
        if not run.still:
            count = length
        elif P == 1 and before and before.still:
            count = 1  # the run before has ended like this one
        else:
            count = min(P + HISTORY, length)
        joined = torch.empty(
            (B, C, HISTORY + count, H, W), dtype=run.x_BCPHW.dtype, device=run.x_BCPHW.device, memory_format=self._last
        )
        joined[:, :, :HISTORY] = 0 if before is None else before.frames
        joined[:, :, HISTORY : HISTORY + P] = run.x_BCPHW
        joined[:, :, HISTORY + P :] = run.x_BCPHW[:, :, -1:]
        history[id(weight)] = Before(joined[:, :, -1 if run.still else -HISTORY :].clone(), run.still)
        return Run(F.conv3d(joined, weight, padding=(0, 1, 1)), length)

    def _downsample(self, layer: Any, run: Run, history: History) -> Run:
        """Halve the sides, and the frames but for the very first, which stands alone."""
        x, length = run
        B, C, P, H, W = x.shape
        flat = x.transpose(1, 2).reshape(B * P, C, H, W)
        flat = layer.resample(flat)
        x = flat.view(B, P, *flat.shape[1:]).transpose(1, 2)
        if layer.mode != "downsample3d":
            return Run(x, length)
        small, before = Run(x, length), history.get(id(layer))
        history[id(layer)] = Before(x[:, :, -1:].clone(), run.still)
        alone = int(before is None)  # the first frame of the first run
        pairs = (length - alone) // 2
        if run.still and P == 1 and before and before.still:
            pairs = 1
        elif run.still:
            pairs = min(pairs, (P - alone + 1) // 2 + 1)
        seen = self._first(small, 2 * pairs + alone)
        if before:
            seen = torch.cat([before.frames, seen], dim=2)
        time = layer.time_conv
        out = F.conv3d(seen, time.weight, time.bias, stride=(2, 1, 1)) if pairs else x[:, :, :0]
        return Run(torch.cat([x[:, :, :alone], out], dim=2), alone + (length - alone) // 2)

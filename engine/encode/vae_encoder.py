"""The Wan VAE, read from its files, and its encoder run for speed: several frames at a time, channels last, what stands
around a convolution fused with it (engine.encode.convolution). Its decoder is diffusers' own, see
engine.encode.latents.

The same function as diffusers' AutoencoderKLWan.encode, which takes 4 frames at a time: the encoder is causal in time,
so any cut into runs gives the same latents as long as each convolution is handed the two frames before its run. A run
here is as many frames as the plan has memory for.

The conditioning of a clip is its first frame and then nothing but zeros. A convolution over three frames that are all
alike gives the same each time: behind a still ending, only as many frames are computed as the change before it still
reaches, two more with each convolution. Of 41 frames the widest layers compute 4 to 12.

B batch, C channels, T frames, P those of them that are held, H W pixels, F latent frames, h w latent sides.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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

from engine.encode import conv_kernels
from engine.encode.convolution import HISTORY, Convolution, channels_of, fill_normed, inside, make_padded, repeat_last
from engine.encode.tensor_cache import key_of
from engine.system.device import fixed_order
from engine.system.placement import Placement
from engine.weights.load_expert import require_numbers
from engine.weights.model_files import ModelFiles


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


REACH = 12  # frames behind a change that the convolutions of full size compute


class Run(NamedTuple):
    """Some frames of a clip: `x`, whose last one is repeated until there are `length`."""

    x_BPHWC: torch.Tensor
    length: int

    @property
    def still(self) -> bool:
        """Whether it ends with frames that are alike."""
        return self.x_BPHWC.shape[1] < self.length


class Before(NamedTuple):
    """What a layer has to know of the run before."""

    frames: torch.Tensor  # its last ones; one stands for any number of the same
    still: bool


@dataclass
class History:
    """What the layers know of the run before."""

    last: bool = False  # no run follows this one, and nothing is kept for it
    _of: dict[int, Before] = field(default_factory=dict)

    def before(self, layer: object) -> Before | None:
        """None in the first run."""
        return self._of.get(id(layer))

    def keep(self, layer: object, frames: torch.Tensor, still: bool) -> None:
        if not self.last:
            self._of[id(layer)] = Before(frames.clone(), still)


class ClipEncoder:
    """Encodes whole clips. `frames` is how many pixel frames go through at a time, a multiple of 4. `ours`:
    the convolutions that our kernel takes, as `conv_kernels.faster` names them."""

    def __init__(self, vae: AutoencoderKLWan, *, frames: int, compiled: bool, ours: str = "") -> None:
        assert frames >= 4 and frames % 4 == 0, frames
        assert vae.config.patch_size is None, "the 16-channel Wan VAE has no patches"
        self.vae, self.frames, self.ours = vae, frames, ours
        tiles = conv_kernels.tiles_of(vae.encoder, ours)
        self._convolutions: dict[nn.Module, Convolution] = {}
        for module in vae.encoder.modules():
            if isinstance(module, nn.Conv3d) and module.kernel_size == (3, 3, 3):
                tile = tiles.get((channels_of(module), module.out_channels))
                self._convolutions[module] = Convolution(module, tile, compiled=compiled)
            elif isinstance(module, nn.Conv3d) and module.weight.is_cuda:
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
            elif isinstance(module, nn.Conv2d) and module.weight.is_cuda:
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    # else the compiler times sums in several orders, and a resume after its cache is lost may encode otherwise
    @fixed_order()
    def moments(self, video_BCPHW: torch.Tensor, frames: int = 0) -> torch.Tensor:
        """Mean and log-variance (B, 2 x 16, F, h, w) of clips of 4n+1 frames, in the VAE's dtype: as many as are given,
        or the last one goes on until there are `frames`."""
        video, held = video_BCPHW.permute(0, 2, 3, 4, 1), video_BCPHW.shape[2]
        T = frames or held
        assert T % 4 == 1 and held <= T, (held, T)
        # the first run has one frame more; the last one takes all that is alike, of which few frames are computed
        cuts = [0, *(b for b in range(1 + self.frames, T, self.frames) if b < held + REACH), T]
        runs = [Run(video[:, min(a, held - 1) : min(b, held)], b - a) for a, b in pairwise(cuts) if b > a]
        history, parts = History(), list[torch.Tensor]()
        for run in runs:
            history.last = run is runs[-1]
            parts.append(self._run(run, history))
        return self.vae.quant_conv(torch.cat(parts, dim=1).permute(0, 4, 1, 2, 3))

    def _run(self, run: Run, history: History) -> torch.Tensor:
        encoder = self.vae.encoder
        first, last = self._convolutions[encoder.conv_in], self._convolutions[encoder.conv_out]
        P = run.x_BPHWC.shape[1]
        with self._padded(first, run, history) as padded:
            padded[..., run.x_BPHWC.shape[-1] :] = 0
            inside(padded)[:, :P, ..., : run.x_BPHWC.shape[-1]] = run.x_BPHWC
            repeat_last(padded, P)
        x = Run(first(padded), run.length)
        for layer, following in zip(encoder.down_blocks, [*encoder.down_blocks[1:], None], strict=True):
            x = self._layer(layer, x, history, edge=isinstance(following, WanResample))
        middle = encoder.mid_block
        x = self._layer(middle.resnets[0], x, history)
        for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
            x = self._layer(resnet, self._layer(attention, x, history), history)
        with self._padded(last, x, history) as padded:
            fill_normed(x.x_BPHWC, None, encoder.norm_out.gamma.flatten(), padded)
        return _first(Run(last(padded), x.length), x.length)

    @contextmanager
    def _padded(self, conv: Convolution, run: Run, history: History) -> Iterator[torch.Tensor]:
        """What a convolution reads of a run: place for the frames that it has to compute, behind the last two frames
        before it. To be filled inside; what the next run needs is then kept."""
        (B, P, H, W, _), before = run.x_BPHWC.shape, history.before(conv)
        if not run.still:
            count = run.length
        elif P == 1 and before and before.still:
            count = 1  # the run before has ended like this one
        else:
            count = min(P + HISTORY, run.length)
        padded = make_padded((B, count, H, W, conv.channels), conv.weight)
        padded[:, :HISTORY] = 0 if before is None else before.frames
        yield padded
        history.keep(conv, padded[:, -1 if run.still else -HISTORY :], run.still)

    def _layer(self, layer: nn.Module, run: Run, history: History, *, edge: bool = False) -> Run:
        """`edge`: with another column and line of zeros, which a residual block can add for nothing."""
        x, length = run
        if isinstance(layer, WanResidualBlock):
            one, two = self._convolutions[layer.conv1], self._convolutions[layer.conv2]
            with self._padded(one, run, history) as padded:
                fill_normed(x, None, layer.norm1.gamma.flatten(), padded)
            # of what the first one computes there is only the shape
            between = Run(x[:, :1].expand(-1, padded.shape[1] - HISTORY, -1, -1, -1), length)
            with self._padded(two, between, history) as second:
                one.normed(padded, layer.norm2.gamma.flatten(), second)
            beside = x
            if not isinstance(layer.conv_shortcut, nn.Identity):
                beside = layer.conv_shortcut(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
            return Run(two(second, _first(Run(beside, length), second.shape[1] - HISTORY), edge=edge), length)
        if isinstance(layer, WanResample):
            assert not edge, "a residual block stands between two"
            return self._downsample(layer, run, history)
        assert isinstance(layer, WanAttentionBlock), type(layer)
        # a long still run has more latent frames than others; each attends to itself alone
        parts = x.permute(0, 4, 1, 2, 3).split(1 + self.frames // 4, dim=2)
        x = torch.cat([layer(part) for part in parts], dim=2).permute(0, 2, 3, 4, 1).contiguous()
        return Run(F.pad(x, (0, 0, 0, 1, 0, 1)) if edge else x, length)

    def _downsample(self, layer: Any, run: Run, history: History) -> Run:
        """Halve the sides, and the frames but for the very first, which stands alone. The zeros that the layer would
        add below and to the right are there."""
        x, length = run
        B, P = x.shape[:2]
        flat = layer.resample[1](x.flatten(0, 1).permute(0, 3, 1, 2))
        x = flat.permute(0, 2, 3, 1).contiguous().unflatten(0, (B, P))
        if layer.mode != "downsample3d":
            return Run(x, length)
        small, before = Run(x, length), history.before(layer)
        history.keep(layer, x[:, -1:], run.still)
        alone = int(before is None)  # the first frame of the first run
        pairs = (length - alone) // 2
        if run.still and P == 1 and before and before.still:
            pairs = 1
        elif run.still:
            pairs = min(pairs, (P - alone + 1) // 2 + 1)
        seen = _first(small, 2 * pairs + alone)
        if before:
            seen = torch.cat([before.frames, seen], dim=1)
        time = layer.time_conv
        if not pairs:
            return Run(x[:, :alone], alone + (length - alone) // 2)
        out = F.conv3d(seen.permute(0, 4, 1, 2, 3), time.weight, time.bias, stride=(2, 1, 1)).permute(0, 2, 3, 4, 1)
        return Run(torch.cat([x[:, :alone], out], dim=1), alone + (length - alone) // 2)


def _first(run: Run, count: int) -> torch.Tensor:
    """The first frames of a run, (B, count, H, W, C)."""
    x, held = run.x_BPHWC, run.x_BPHWC.shape[1]
    if count > held:
        x = torch.cat([x, x[:, -1:].expand(-1, count - held, -1, -1, -1)], dim=1)
    return x[:, :count].contiguous()

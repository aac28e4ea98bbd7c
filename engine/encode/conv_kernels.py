"""Which convolutions of the VAE's encoder our kernel takes: those in which it was the faster one when the card was
measured, or nearly.

Ours and torch's round differently. So the choice is measured once for a card and its software
(`engine.memory.measure_card`) and kept by checkpoints, and each size has one tile on a card.
"""

from functools import cache, partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from engine.encode.convolution import Convolution, channels_of, inside, make_padded
from engine.system.device import fixed_order, memory_errors
from engine.system.stopwatch import mean_seconds

if TYPE_CHECKING:
    from engine.kernels.triton_conv import Tile

WAN = ((8, 96), (96, 96), (96, 192), (192, 192), (192, 384), (384, 384), (384, 32))  # inputs, outputs
FRAMES, SIDE = 4, 128  # of a measurement, at least
VALUES = 768  # inputs and outputs of a pixel, of so many frames at that side
NO_SLOWER = 1.1  # of torch's time: beside torch's convolution stands a sum that has to be compiled at each start
AGREE = 0.01  # relative: bf16 rounds by 0.003
SEPARATOR = ", "


def name_of(inputs: int, outputs: int) -> str:
    return f"{inputs} to {outputs}"


def sizes(encoder: nn.Module) -> list[tuple[int, int]]:
    """(inputs, outputs) of each kind of 3x3x3 convolution in an encoder."""
    found = [m for m in encoder.modules() if isinstance(m, nn.Conv3d) and m.kernel_size == (3, 3, 3)]
    return sorted({(channels_of(m), m.out_channels) for m in found})


def tiles_of(encoder: nn.Module, ours: str) -> "dict[tuple[int, int], Tile]":
    """Of the convolutions that are `ours`, as `faster` names them, by inputs and outputs."""
    if not ours:
        return {}
    from engine.kernels.triton_conv import tile_of  # Triton comes with the CUDA builds of torch alone

    capability = torch.cuda.get_device_capability(next(encoder.parameters()).device)
    return {size: tile_of(size[1], capability) for size in sizes(encoder) if name_of(*size) in ours.split(SEPARATOR)}


@cache
def faster(device: torch.device) -> str:
    """The names of Wan's convolutions in which our kernel is faster than torch's on this card, or about as fast, and
    gives the same answer. Raises torch.OutOfMemoryError."""
    return SEPARATOR.join(sorted(name_of(*size) for size in WAN if _is_faster(*size, device)))


@torch.no_grad()
def _is_faster(inputs: int, outputs: int, device: torch.device) -> bool:
    """On a few random frames: the fewer channels, the more pixels, for a launch takes time as well."""
    made = torch.Generator(device).manual_seed(0)
    conv = nn.Conv3d(inputs, outputs, 3, device=device, dtype=torch.bfloat16).requires_grad_(False)
    conv.weight.data = torch.randn(conv.weight.shape, generator=made, device=device).to(torch.bfloat16)
    side = SIDE * max(1, round((VALUES / (inputs + outputs)) ** 0.5))
    padded = make_padded((1, FRAMES, side, side, inputs), conv.weight)
    padded[:, :2] = 0
    for frame in inside(padded)[0]:
        frame[:] = torch.randn(side, side, inputs, generator=made, device=device)
    try:
        with fixed_order(), memory_errors():
            from engine.kernels.triton_conv import tile_of

            tile = tile_of(outputs, torch.cuda.get_device_capability(device))
            plain, ours = (Convolution(conv, which, compiled=False) for which in (None, tile))
            right = plain(padded)
            apart = torch.linalg.vector_norm(ours(padded) - right, dtype=torch.float32)
            if not apart < AGREE * torch.linalg.vector_norm(right, dtype=torch.float32):
                return False
            return mean_seconds(partial(ours, padded)) < NO_SLOWER * mean_seconds(partial(plain, padded))
    except torch.OutOfMemoryError:  # it says nothing of the card, and the choice is remembered
        raise
    except Exception:  # a card that has no room for the tile, or no Triton; what is raised is of several kinds
        return False

"""Which convolutions of the VAE's encoder our kernel takes, and with which tile: found on the card at hand, by time and
by the answer.

All tiles add in the same order and give the same bits, so the tile may be found anew in each process. Ours and torch's
round differently: which of them is taken, a checkpoint keeps.
"""

from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from engine.encode.convolution import Convolution, channels_of, inside, room_of
from engine.system.device import fixed_order, memory_errors

if TYPE_CHECKING:
    from engine.kernels.triton_conv import Tile

FRAMES, SIDE = 4, 128  # of a measurement, at least
VALUES = 768  # inputs and outputs of a pixel, of so many frames at that side
REPEATS = 5
AGREE = 0.01  # relative: bf16 rounds by 0.003
SEPARATOR = ", "


class Found(NamedTuple):
    """Of one number of inputs and outputs: seconds of torch's convolution and of the fastest tile of ours, and why
    other tiles were refused."""

    torch: float
    ours: float
    tile: "Tile | None"
    refused: dict[str, str]


class Choice(NamedTuple):
    """Tiles of the convolutions that are ours, by inputs and outputs."""

    tiles: "dict[tuple[int, int], Tile]"
    why: str

    @property
    def ours(self) -> str:
        """For a checkpoint."""
        return SEPARATOR.join(sorted(_name(*size) for size in self.tiles))


def _name(inputs: int, outputs: int) -> str:
    return f"{inputs} to {outputs}"


def sizes(encoder: nn.Module) -> list[tuple[int, int]]:
    """(inputs, outputs) of each kind of 3x3x3 convolution in an encoder."""
    found = [m for m in encoder.modules() if isinstance(m, nn.Conv3d) and m.kernel_size == (3, 3, 3)]
    return sorted({(channels_of(m), m.out_channels) for m in found})


def choose(encoder: nn.Module, before: str | None = None) -> Choice:
    """By what is measured on the card of the encoder's weights, or as a checkpoint says: `before` is the `ours` of its
    run. None are ours on a CPU, nor in another type than bf16. Raises torch.OutOfMemoryError."""
    weight = next(encoder.parameters())
    if not weight.is_cuda or weight.dtype != torch.bfloat16:
        return Choice({}, "")
    kept = None if before is None else before.split(SEPARATOR)
    asked = [size for size in sizes(encoder) if kept is None or _name(*size) in kept]
    return chosen({size: measure(*size, weight.device) for size in asked}, again=kept is not None)


def chosen(found: dict[tuple[int, int], Found], *, again: bool) -> Choice:
    """Ours where it is faster, or, `again`, wherever it was before a resume."""
    tiles, words = {}, []
    for size, one in found.items():
        reasons = SEPARATOR.join(sorted(set(one.refused.values())))
        if one.tile and (again or one.ours < one.torch):
            tiles[size] = one.tile
        elif again:
            raise RuntimeError(f"the convolution of {_name(*size)} was ours before the resume: {reasons}")
        ours = f"ours {1e3 * one.ours:.2f} ms" if one.tile else f"ours not ({reasons})"
        words.append(f"{_name(*size)}: torch {1e3 * one.torch:.2f} ms, {ours}")
    return Choice(tiles, "; ".join(words))


@cache
def measure(inputs: int, outputs: int, device: torch.device) -> Found:
    """On a few random frames: the fewer channels, the more pixels, for a launch takes time as well. Raises
    torch.OutOfMemoryError."""
    from engine.kernels.triton_conv import tiles  # Triton comes with the CUDA builds of torch alone

    made = torch.Generator(device).manual_seed(0)
    conv = nn.Conv3d(inputs, outputs, 3, device=device, dtype=torch.bfloat16).requires_grad_(False)
    conv.weight.data = torch.randn(conv.weight.shape, generator=made, device=device).to(torch.bfloat16)
    side = SIDE * max(1, round((VALUES / (inputs + outputs)) ** 0.5))
    room = room_of((1, FRAMES, side, side, inputs), conv.weight)
    room[:, :2] = 0
    for frame in inside(room)[0]:
        frame[:] = torch.randn(side, side, inputs, generator=made, device=device)
    refused: dict[str, str] = {}
    best: tuple[float, Any] = (float("inf"), None)
    first: torch.Tensor | None = None
    with torch.no_grad(), fixed_order(), memory_errors():
        plain = Convolution(conv, None, compiled=False)
        seconds = _seconds(partial(plain, room))
        right = plain(room)
        size = torch.linalg.vector_norm(right, dtype=torch.float32)
        for tile in tiles(inputs, outputs, torch.cuda.get_device_capability(device)):
            try:
                ours = Convolution(conv, tile, compiled=False)
                answer = ours(room)
                apart = float(torch.linalg.vector_norm(answer - right, dtype=torch.float32) / size)
                if not apart < AGREE:
                    raise RuntimeError(f"its answer is {apart:.1%} away from torch's")
                first = answer if first is None else first
                if not torch.equal(answer, first):
                    raise RuntimeError("its tiles add in different orders")
                best = min(best, (_seconds(partial(ours, room)), tile), key=lambda pair: pair[0])
            except torch.OutOfMemoryError:
                raise
            except Exception as e:  # a card that has no room for it; Triton raises what it likes
                refused[str(tile)] = (str(e).splitlines() or [type(e).__name__])[0]
    return Found(seconds, *best, refused)


def _seconds(run: Any) -> float:
    """Mean of a call, after one that is not counted."""
    run()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(REPEATS):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / REPEATS / 1e3

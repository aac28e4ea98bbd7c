"""The Triton kernels behind `engine.encode.convolution`, in a module of its own because Triton comes with CUDA alone.

A 3x3x3 convolution as a product of matrices, without a copy of its input. In a padded clip, one with a border of zeros,
the pixels are the rows of one matrix, and the neighbours of neighbouring pixels are again neighbouring rows, as many
rows further on for all of them. Of a tile, a run of rows, each of the nine (time, height) taps is a product with the
3 C columns that begin at a row's first: its own pixel and the two after it. Two of W + 2 rows are computed for nothing.

B batch, T frames of the output, H W its pixels, C channels, N of the output.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

TAPS = 3  # along each side
DESCRIBED = (9, 10)  # generations with a unit that loads by tensor descriptors, and the memory for it
NORM_VALUES = 8192  # of a program that normalizes
GROUP = 32  # tiles of one frame that go through its frames together: what they share stays in the cache


class Tile(NamedTuple):
    pixels: int
    outputs: int
    rest: int  # further outputs of the same program: 96 is 64 and 32
    columns: int  # of the contraction at a time
    warps: int
    stages: int  # loads ahead
    described: bool  # loads go through tensor descriptors


def tile_of(outputs: int, capability: tuple[int, int]) -> Tile:
    """One for each number of outputs and generation of cards: with another the sums of a norm come in another order."""
    found = next(found for most, found in TILES.items() if outputs <= most)
    return found[0] if capability[0] in DESCRIBED else found[-1]


# By the outputs that they are for, at most: with descriptors, and by pointers, which take 56 to 96 KB of shared memory
# on each card. The former are the fastest of those tried on an H200, but for 384 to 384 at an eighth of the sides.
TILES = {
    32: (Tile(128, 32, 0, 64, 4, 3, False),),
    96: (Tile(256, 128, 0, 32, 8, 5, True), Tile(128, 64, 32, 32, 4, 4, False)),
    192: (Tile(128, 128, 64, 64, 8, 4, True), Tile(128, 128, 64, 32, 8, 4, False)),
    1024: (Tile(256, 128, 0, 64, 8, 3, True), Tile(128, 128, 0, 64, 8, 3, False)),
}


@triton.jit
def _silu(values):  # type: ignore[no-untyped-def]
    return values / (1.0 + tl.exp(-values))


# Sizes that are multiples of 16, or 1, get no code of their own: all that is read and written lies at multiples of C or
# N, and each variant takes seconds to compile at the first clip that needs it.
@triton.jit(do_not_specialize=["held", "frames", "height", "width"])
def norm_silu_kernel(  # type: ignore[no-untyped-def]
    x,
    bias,
    gamma,
    y,
    held,
    frames,
    height,
    width,
    root,
    C: tl.constexpr,
    BIAS: tl.constexpr,
    PIXELS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program per run of PIXELS of a frame. See `engine.encode.convolution.fill_normed`."""
    clip, frame = tl.program_id(1) // frames, tl.program_id(1) % frames
    rows, k = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS), tl.arange(0, COLUMNS)
    inside = (rows < height * width)[:, None] & (k < C)[None, :]
    x += (clip * held + tl.minimum(frame, held - 1)).to(tl.int64) * height * width * C
    values = tl.load(x + rows[:, None] * C + k[None, :], mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        values += tl.load(bias + k, mask=k < C, other=0.0).to(tl.float32)[None, :]
    values = values * (root / tl.maximum(tl.sqrt(tl.sum(values * values, 1)), 1e-12))[:, None]
    values = _silu(values * tl.load(gamma + k, mask=k < C, other=0.0).to(tl.float32)[None, :])
    wide = width + 2
    y += (clip * (frames + 2) + frame + 2).to(tl.int64) * (height + 2) * wide * C
    at = (rows // width * wide + rows % width + wide + 1)[:, None] * C + k[None, :]
    tl.store(y + at, values.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _biased(sums, bias, outputs, N):  # type: ignore[no-untyped-def]
    """Zero beyond the last output, whose norm they would else be part of."""
    sums += tl.load(bias + outputs, mask=outputs < N, other=0.0).to(tl.float32)[None, :]
    return tl.where(outputs[None, :] < N, sums, 0.0)


@triton.jit
def _store(  # type: ignore[no-untyped-def]
    values, beside, y, frame, rows, height, width, outputs, N, BESIDE: tl.constexpr, EDGE: tl.constexpr
):
    h, w = rows // (width + 2), rows % (width + 2)
    kept = ((h < height) & (w < width))[:, None] & (outputs < N)[None, :]
    if BESIDE:
        pixels = frame.to(tl.int64) * height * width + h * width + w
        values += tl.load(beside + pixels[:, None] * N + outputs[None, :], mask=kept, other=0.0).to(tl.float32)
    pixels = frame.to(tl.int64) * (height + EDGE) * (width + EDGE) + h * (width + EDGE) + w
    inside = ((h < height) & (w < width + EDGE))[:, None] & (outputs < N)[None, :]
    values = tl.where(kept, values, 0.0)
    tl.store(y + pixels[:, None] * N + outputs[None, :], values.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _store_normed(values, scale, gamma, y, pixels, kept, rows_inside, outputs, N):  # type: ignore[no-untyped-def]
    """What falls on the border is zero."""
    values = _silu(
        values * scale[:, None] * tl.load(gamma + outputs, mask=outputs < N, other=0.0).to(tl.float32)[None, :]
    )
    values = tl.where(kept[:, None], values, 0.0)
    at = pixels[:, None] * N + outputs[None, :]
    tl.store(y + at, values.to(y.dtype.element_ty), mask=rows_inside[:, None] & (outputs[None, :] < N))


@triton.jit(do_not_specialize=["frames", "clips", "height", "width", "padded_frames"])
def conv_kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    weight_rest,
    bias,
    beside,
    y,
    frames,
    clips,
    height,
    width,
    N,
    padded_frames,
    root,
    C: tl.constexpr,
    PIXELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    REST: tl.constexpr,
    COLUMNS: tl.constexpr,
    DESCRIBED: tl.constexpr,
    BESIDE: tl.constexpr,
    NORM: tl.constexpr,
    EDGE: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One program per run of PIXELS of a frame with its border, and OUTPUTS + REST channels. BESIDE: added to another
    tensor. NORM: all outputs of a pixel in one program, with norm and activation (`beside` is gamma), into a padded
    clip of so many frames. EDGE: a further column and line follow in each frame of the output; the column is written,
    zeros."""
    STEPS: tl.constexpr = (3 * C + COLUMNS - 1) // COLUMNS  # of one (time, height) tap
    wide = width + 2
    tiles_n = tl.cdiv(N, OUTPUTS + REST)
    tiles_m = tl.cdiv(height * wide, PIXELS)
    # a group of tiles goes through all frames, each tile through its outputs
    of_group = GROUP * frames * clips * tiles_n
    first = tl.program_id(0) // of_group * GROUP
    inside = tl.program_id(0) % of_group
    together = tl.minimum(tiles_m - first, GROUP)
    output = inside % tiles_n * (OUTPUTS + REST)
    row = (first + inside // tiles_n % together) * PIXELS
    frame = inside // tiles_n // together  # of the output, all clips' in a row
    start = (frame + frame // frames * 2) * (height + 2) * wide + row  # in the first of the three frames that it sees
    rows, k, outputs = row + tl.arange(0, PIXELS), tl.arange(0, COLUMNS), output + tl.arange(0, OUTPUTS)
    if not DESCRIBED:
        # beyond the end the last one is read again, and not stored; offsets within a tile are 32-bit
        x += start.to(tl.int64) * C
        in_x = (tl.minimum(rows, height * wide - 1) - row)[:, None] * C + k[None, :]
        in_weight = tl.minimum(outputs, N - 1)[None, :] * (9 * STEPS * COLUMNS) + k[:, None]
    sums = tl.zeros((PIXELS, OUTPUTS), dtype=tl.float32)
    if REST:
        outputs_rest = output + OUTPUTS + tl.arange(0, REST)
        sums_rest = tl.zeros((PIXELS, REST), dtype=tl.float32)
        if not DESCRIBED:
            in_rest = tl.minimum(outputs_rest, N - 1)[None, :] * (9 * STEPS * COLUMNS) + k[:, None]
    for i in range(0, 9 * STEPS):
        tap, column = i // STEPS, i % STEPS * COLUMNS
        further = (tap // 3 * (height + 2) + tap % 3) * wide
        if DESCRIBED:
            if C % COLUMNS == 0:
                a = x.load([start + further + column // C, column % C])
            else:
                a = x.load([start + further, column])
            b = weight.load([output, i * COLUMNS]).T
        else:
            at = x + further * C + column
            if 3 * C % COLUMNS == 0:
                a = tl.load(at + in_x)
            else:
                a = tl.load(at + in_x, mask=k[None, :] < 3 * C - column, other=0.0)
            b = tl.load(weight + i * COLUMNS + in_weight)
        sums = tl.dot(a, b, sums, input_precision="ieee")
        if REST:
            if DESCRIBED:
                b_rest = weight_rest.load([output + OUTPUTS, i * COLUMNS]).T
            else:
                b_rest = tl.load(weight + i * COLUMNS + in_rest)
            sums_rest = tl.dot(a, b_rest, sums_rest, input_precision="ieee")
    sums = _biased(sums, bias, outputs, N)
    if REST:
        sums_rest = _biased(sums_rest, bias, outputs_rest, N)
    if NORM:
        squares = tl.sum(sums * sums, 1)
        if REST:
            squares += tl.sum(sums_rest * sums_rest, 1)
        scale = root / tl.maximum(tl.sqrt(squares), 1e-12)
        # the pixel itself is a row and a column after the first that it sees; past a line's end lies the border
        padded = frame // frames * (padded_frames + 2) + frame % frames + 2
        pixels = padded.to(tl.int64) * (height + 2) * wide + rows + wide + 1
        kept = (rows % wide < width) & (rows < height * wide)
        _store_normed(sums, scale, beside, y, pixels, kept, rows < height * wide, outputs, N)
        if REST:
            _store_normed(sums_rest, scale, beside, y, pixels, kept, rows < height * wide, outputs_rest, N)
    else:
        _store(sums, beside, y, frame, rows, height, width, outputs, N, BESIDE, EDGE)
        if REST:
            _store(sums_rest, beside, y, frame, rows, height, width, outputs_rest, N, BESIDE, EDGE)


def packed(weight_NCTHW: torch.Tensor, columns: int) -> torch.Tensor:
    """(N, K): for each of the nine (time, height) taps the 3 C columns of its pixels, and zeros up to a multiple of
    `columns`. Without these a view of a weight that is channels last."""
    N, C = weight_NCTHW.shape[:2]
    runs = weight_NCTHW.permute(0, 2, 3, 4, 1).reshape(N, TAPS * TAPS, TAPS * C)
    if zeros := -TAPS * C % columns:
        runs = torch.nn.functional.pad(runs, (0, zeros))
    return runs.reshape(N, -1)


def norm_silu(x_BPHWC: torch.Tensor, bias_C: torch.Tensor | None, gamma_C: torch.Tensor, padded: torch.Tensor) -> None:
    """See `engine.encode.convolution.fill_normed`."""
    B, P, H, W, C = x_BPHWC.shape
    T = padded.shape[1] - 2
    columns = triton.next_power_of_2(C)
    pixels = max(1, NORM_VALUES // columns)
    norm_silu_kernel[(triton.cdiv(H * W, pixels), B * T)](
        x_BPHWC,
        x_BPHWC if bias_C is None else bias_C,
        gamma_C,
        padded,
        P,
        T,
        H,
        W,
        C**0.5,
        C=C,
        BIAS=bias_C is not None,
        PIXELS=pixels,
        COLUMNS=columns,
        num_warps=4,
    )


def conv(
    x: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor,
    beside_BTHWN: torch.Tensor | None,
    tile: Tile,
    edge: int = 0,
) -> torch.Tensor:
    """(B, T, H, W, N) of a padded clip and a weight from `packed`; with `edge` 1 another column and line of zeros.
    Raises what Triton raises where `tile` does not fit the card."""
    B, T, H, W, _ = x.shape
    size = (B, T - 2, H - 2 + edge, W - 2 + edge, weight_NK.shape[0])
    y = torch.empty(size, dtype=x.dtype, device=x.device)
    if edge:
        y[:, :, -1] = 0
    _run(x, weight_NK, bias_N, beside_BTHWN, y, tile, edge=edge)
    return y


def conv_norm_silu(
    x: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor,
    gamma_N: torch.Tensor,
    padded: torch.Tensor,
    tile: Tile,
) -> None:
    """With norm and activation after it, into the first frames of `padded`."""
    assert weight_NK.shape[0] <= tile.outputs + tile.rest, "a pixel's outputs lie in one program"
    _run(x, weight_NK, bias_N, gamma_N, padded, tile, norm=True)


def _run(
    x: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor,
    beside: torch.Tensor | None,
    y: torch.Tensor,
    tile: Tile,
    *,
    norm: bool = False,
    edge: int = 0,
) -> None:
    (B, T, H, W, C), N = x.shape, weight_NK.shape[0]
    T, H, W = T - 2, H - 2, W - 2
    tiles = triton.cdiv(H * (W + 2), tile.pixels) * triton.cdiv(N, tile.outputs + tile.rest)
    ways = (x, weight_NK, weight_NK)
    if tile.described:
        pixels = B * (T + 2) * (H + 2) * (W + 2)
        seen = C if C % tile.columns == 0 else TAPS * C  # rows that overlap, where a load may cross pixels
        ways = (
            TensorDescriptor(x, [pixels, seen], [C, 1], [tile.pixels, tile.columns]),
            TensorDescriptor.from_tensor(weight_NK, [tile.outputs, tile.columns]),
            TensorDescriptor.from_tensor(weight_NK, [tile.rest or tile.outputs, tile.columns]),
        )
    conv_kernel[(tiles * B * T,)](
        *ways,
        bias_N,
        y if beside is None else beside,
        y,
        T,
        B,
        H,
        W,
        N,
        y.shape[1] - 2,
        N**0.5,
        C=C,
        PIXELS=tile.pixels,
        OUTPUTS=tile.outputs,
        REST=tile.rest,
        COLUMNS=tile.columns,
        DESCRIBED=tile.described,
        BESIDE=beside is not None,
        NORM=norm,
        EDGE=edge,
        GROUP=GROUP,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )

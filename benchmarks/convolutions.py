"""The convolutions of the VAE's encoder by themselves, and what stands around them; then a whole encode by kind of
kernel.

    python -m benchmarks.convolutions [--frames N] [--tiny] [--json FILE] [--profile]

For each shape of a run of N frames of 512 x 512: ms and TFLOP/s of cuDNN, of what a run has of it today (its input
copied behind the two frames before it), and of our kernel with each of its tiles, also with what it can take on (the
sum with the residual block's input, norm and activation); `apart` is how far from cuDNN's an answer is. Then the norm
before a convolution. At the end ms of all convolutions of one clip of 41 frames by cuDNN and by the fastest of ours.
--tiny is small and runs anywhere; on a CPU its times mean nothing. --profile: both encodes of a clip.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKLWan
from torch.nn import functional as F

from benchmarks.int8_products import seconds
from benchmarks.kernel_kinds import by_kind, lines
from engine.encode.conv_kernels import faster
from engine.encode.convolution import make_padded, norm_silu
from engine.encode.latents import encode_pair
from engine.encode.vae_encoder import ClipEncoder
from engine.system.device import compile_alike, fixed_order, open_device

SIDE, CLIP = 512, 41
Row = dict[str, Any]


class Shape(NamedTuple):
    inputs: int
    outputs: int
    scale: int  # of the sides
    every: int  # of the frames
    convolutions: int  # of this shape in the encoder

    @property
    def name(self) -> str:
        return f"{self.inputs} to {self.outputs}, 1/{self.scale}"


SHAPES: tuple[Shape, ...] = (
    Shape(96, 96, 1, 1, 4),
    Shape(96, 192, 2, 1, 1),
    Shape(192, 192, 2, 1, 3),
    Shape(192, 384, 4, 2, 1),
    Shape(384, 384, 4, 2, 3),
    Shape(384, 384, 8, 4, 8),
    Shape(384, 32, 8, 4, 1),
)
TINY_SHAPES: tuple[Shape, ...] = (Shape(16, 16, 1, 1, 4), Shape(16, 24, 2, 1, 1))


def told(found: list[Row], shape: Shape, way: str, run: Callable[[], Any], flop: float, right: Any = None) -> None:
    row: Row = {"shape": shape.name, "way": way}
    found.append(row)
    try:
        answer = run()
        row["ms"] = 1e3 * seconds(run, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    except Exception as e:  # a tile that this card has no room for
        row["failed"] = (str(e).splitlines() or [type(e).__name__])[0]
        print(f"{shape.name:<20}{way:<44}{row['failed'][:50]}", flush=True)
        return
    row["tflops"] = flop / row["ms"] / 1e9
    if right is not None:
        row["apart"] = float((answer.float() - right.float()).norm() / right.float().norm())
    apart = f"{row['apart']:>10.4f}" if "apart" in row else ""
    print(f"{shape.name:<20}{way:<44}{row['ms']:>9.3f}{row['tflops']:>9.0f}{apart}", flush=True)


def measured(shape: Shape, frames: int, side: int, device: torch.device) -> list[Row]:
    """Channels last throughout, as a run has them."""
    T, side = frames // shape.every, side // shape.scale
    C, N, flop = shape.inputs, shape.outputs, 2.0 * 27 * shape.inputs * shape.outputs * T * side**2
    made = torch.Generator(device).manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    last = {"memory_format": torch.channels_last_3d}
    x, beside = (
        torch.randn(1, T, side, side, n, generator=made, device=device).to(dtype).permute(0, 4, 1, 2, 3) for n in (C, N)
    )
    weight = (torch.randn(N, C, 3, 3, 3, generator=made, device=device) * (27 * C) ** -0.5).to(dtype)
    bias, gamma, gamma_out = (torch.randn(n, generator=made, device=device).to(dtype) for n in (N, C, N))
    weight_last = weight.contiguous(**last)
    found: list[Row] = []
    say = partial(told, found, shape, flop=flop)
    joined = F.pad(x, (0, 0, 0, 0, 2, 0)).contiguous(**last)

    def today() -> torch.Tensor:
        new = torch.empty_like(joined)
        new[:, :, :2] = 0
        new[:, :, 2:] = x
        return F.conv3d(new, weight_last, padding=(0, 1, 1))

    plain = partial(F.conv3d, joined, weight_last, padding=(0, 1, 1))
    say("cuDNN", plain)
    say("cuDNN, its input copied first", today)
    torch.backends.cudnn.benchmark = True
    say("cuDNN, chosen by timing", plain)
    torch.backends.cudnn.benchmark = False
    right = (plain().float() + bias.float().view(-1, 1, 1, 1)).to(dtype)
    normed, compiled = norm_silu, device.type == "cuda"
    if compiled:
        normed = torch.compile(norm_silu, dynamic=True)
    say("norm and activation, torch", partial(normed, x.permute(0, 2, 3, 4, 1), None, gamma))
    if device.type == "cuda":
        from engine.kernels import triton_conv as ours  # Triton comes with the CUDA builds of torch alone

        flat, flat_beside = x.permute(0, 2, 3, 4, 1), beside.permute(0, 2, 3, 4, 1)
        padded = make_padded(tuple(flat.shape), flat)
        padded[:, :2] = 0
        say("norm and activation into a padded clip, ours", partial(ours.norm_silu, flat, None, gamma, padded))
        padded.zero_()
        padded[:, 2:, 1:-1, 1:-1] = flat
        out = make_padded(tuple(flat_beside.shape), flat)
        say("an empty padded clip", partial(make_padded, tuple(flat_beside.shape), flat))
        best: tuple[float, Any] = (float("inf"), None)
        for tile in dict.fromkeys(ours.tile_of(N, card) for card in ((9, 0), (8, 0))):
            packed = ours.packed(weight, tile.columns)
            name = f"{tile.pixels}x{tile.outputs}{f'+{tile.rest}' if tile.rest else ''}x{tile.columns}"
            name = f"ours, {name}, {tile.warps} warps, {tile.stages}, {'desc.' if tile.described else 'pointers'}"

            def run(packed: torch.Tensor = packed, tile: Any = tile) -> torch.Tensor:
                return ours.conv(padded, packed, bias, None, tile).permute(0, 4, 1, 2, 3)

            say(name, run, right=right)
            best = min(best, (found[-1].get("ms", float("inf")), tile), key=lambda pair: pair[0])
        tile = best[1]
        if tile is not None:
            packed = ours.packed(weight, tile.columns)
            say("ours, with the block's input", partial(ours.conv, padded, packed, bias, flat_beside, tile))
            if tile.outputs + tile.rest >= N:
                say("ours, with norm", partial(ours.conv_norm_silu, padded, packed, bias, gamma_out, out, tile))
    return found


def summed(found: list[Row], shapes: tuple[Shape, ...], frames: int) -> dict[str, float]:
    """ms of all convolutions of a clip of 41 frames; of ours 0 where there is no GPU."""
    sums = {"cuDNN": 0.0, "cuDNN, its input copied first": 0.0, "ours": 0.0}
    for shape in shapes:
        rows = [row for row in found if row["shape"] == shape.name and "ms" in row]
        for name in sums:
            times = [row["ms"] for row in rows if row["way"] == name or (name == "ours" and "apart" in row)]
            sums[name] += min(times, default=0.0) * shape.convolutions * CLIP / frames
    return sums


def profiled(frames: int, side: int, device: torch.device, *, tiny: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    cuda = device.type == "cuda"
    config: dict[str, Any] = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2} if tiny else {}
    vae = AutoencoderKLWan(**config).to(device, torch.bfloat16 if cuda else torch.float32)
    vae = vae.requires_grad_(False).eval()
    video = torch.rand(1, 3, 5 if tiny else CLIP, side, side, device=device) * 2 - 1
    found: dict[str, Any] = {}
    answers = []
    for way, ours in (("torch's convolutions", ""), ("as a run has it", faster(device) if cuda else "")):
        encoder = ClipEncoder(vae, frames=frames, compiled=cuda, ours=ours)
        both = partial(encode_pair, encoder, video)
        answers.append(both())
        again = both()
        same = all(torch.equal(a, b) for a, b in zip(answers[-1], again, strict=True))
        apart = [float((a - b).norm() / b.norm()) for a, b in zip(answers[-1], answers[0], strict=True)]
        found[way] = {"seconds": seconds(both, device), "ours": ours, "apart": apart}
        print(f"both encodes of {video.shape[2]}x{side}x{side}, {frames} frames at a time, {way}:")
        print(f"  {found[way]['seconds']:.4f} s, again the same bits: {same}, from torch's: {apart}\n  {ours}")
        found[way] |= by_kind(device, both)
        for line in lines(found[way]):
            print(line)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, help="of a run, a multiple of 4 (default: 16)", default=16)
    parser.add_argument("--shapes", type=int, nargs="*", help="which of them, from 0 (default: all)")
    parser.add_argument("--tiny", action="store_true", help="small shapes, for any machine")
    parser.add_argument(
        "--profile",
        action="store_true",
        help="both encodes of a clip by kind of kernel, first, with torch's convolutions and with ours",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found as one object")
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    if not cuda and not args.tiny:
        print("The real shapes need a GPU; on this machine use --tiny.", file=sys.stderr)
        return 2
    device = open_device()
    shapes, side = (TINY_SHAPES, 16) if args.tiny else (SHAPES, SIDE)
    if args.shapes is not None:
        shapes = tuple(shapes[i] for i in args.shapes)
    card = torch.cuda.get_device_name() if cuda else "CPU: no times to go by"
    print(f"torch {torch.__version__}, {card}, {args.frames} frames of {side} x {side}")
    compile_alike()
    found: dict[str, Any] = {"torch": torch.__version__, "card": card, "frames": args.frames}
    if args.profile:
        found["encodes"] = profiled(args.frames, side, device, tiny=args.tiny)
    print(f"{'ms':>73}{'TFLOP/s':>9}{'apart':>10}")
    with torch.no_grad(), fixed_order(cuda):
        found["convolutions"] = [row for shape in shapes for row in measured(shape, args.frames, side, device)]
    found["clip_ms"] = summed(found["convolutions"], shapes, args.frames)
    for name, ms in found["clip_ms"].items():
        print(f"convolutions of a clip of {CLIP} frames, {name}: {ms:.1f} ms")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

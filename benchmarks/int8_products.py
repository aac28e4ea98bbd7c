"""Products of 8-bit integers on the card at hand, against bf16 and float8; then a whole block in each precision,
forward and backward.

    python -m benchmarks.int8_products [--rows N] [--tiny] [--json FILE]

For each of Wan's three shapes of linears (5120 to 5120, 5120 to 13824, 13824 to 5120), in TOP/s: bf16, torch's own
float8 and int8 products by themselves, our int8 kernel with each of its tiles, and the linears as a run has them, with
all that quantizes and rotates around the product: `forward` and `backward` (the gradient of the input). `gain` divides
by bf16. --tiny is small and runs anywhere; on a CPU its times mean nothing.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.precision_error import (
    REAL,
    TINY,
    Case,
    milliseconds,
    packed_by,
    plain_of,
    random_inputs,
    random_state,
    run,
)
from engine.wan.frozen_linear import frozen_linear
from engine.wan.int8_ops import rotated_int8, side_of
from engine.wan.quantize import pack

ROWS, TINY_ROWS = 11264, 64  # 41 frames of 512 x 512
REPEATS = 20
FLOAT8_FROM = (8, 9)


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Mean of a call, after two that are not counted."""
    for _ in range(2):
        run()
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(REPEATS):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / REPEATS / 1e3


def alone(x: torch.Tensor, w: torch.Tensor, *, float8: bool) -> dict[str, Callable[[], Any]]:
    """The products by themselves, on operands that are quantized already."""
    q, scale = pack(w, "int8")
    codes, x_scale = rotated_int8(x, None, side_of(x.shape[1]), 1e-6)
    ways: dict[str, Callable[[], Any]] = {
        "bf16": partial(F.linear, x, w.to(x.dtype)),
        "torch._int_mm": partial(torch._int_mm, codes, q.t()),
    }
    if float8:
        held, held_scale = pack(w, "float8")
        ones = torch.ones(x.shape[0], 1, device=x.device)
        ways["torch._scaled_mm (float8)"] = partial(
            torch._scaled_mm,
            x.to(held.dtype),
            held.t(),
            scale_a=ones,
            scale_b=held_scale.t(),
            out_dtype=x.dtype,
            use_fast_accum=True,
        )
    if x.device.type == "cuda":
        from engine.kernels import triton_int8  # Triton comes with the CUDA builds of torch alone

        for tile in triton_int8.TILES:
            ways[f"our int8, {'x'.join(map(str, tile))}"] = partial(
                triton_int8.int8_product, codes, x_scale, q, scale, x.dtype, tile
            )
    return ways


def linears(x: torch.Tensor, w: torch.Tensor, precisions: list[str]) -> dict[str, Callable[[], Any]]:
    """The frozen linears of a run, each way."""
    bias = torch.zeros(w.shape[0], device=x.device, dtype=x.dtype)
    ways: dict[str, Callable[[], Any]] = {}
    for precision in precisions:
        packed = pack(w.to(x.dtype) if precision == "none" else w, precision)
        leaf = x.detach().requires_grad_()
        y = frozen_linear(leaf, packed, bias, precision)
        grad = torch.randn_like(y)
        ways[f"{precision} forward"] = partial(frozen_linear, x, packed, bias, precision)
        ways[f"{precision} backward"] = partial(torch.autograd.grad, y, leaf, grad, retain_graph=True)
    return ways


def products(config: dict[str, Any], rows: int, device: torch.device, precisions: list[str]) -> list[dict[str, Any]]:
    """One row per shape and way."""
    width, ffn = config["num_attention_heads"] * config["attention_head_dim"], config["ffn_dim"]
    generator = torch.Generator(device).manual_seed(0)
    found = []
    for outputs, inputs in ((width, width), (ffn, width), (width, ffn)):
        x = torch.randn(rows, inputs, generator=generator, device=device).bfloat16()
        w = torch.randn(outputs, inputs, generator=generator, device=device) * 0.02
        ways = alone(x, w, float8="float8" in precisions) | linears(x, w, precisions)
        reference = 0.0
        for name, way in ways.items():
            row: dict[str, Any] = {"rows": rows, "inputs": inputs, "outputs": outputs, "way": name}
            try:
                row["tops"] = 2 * rows * inputs * outputs / seconds(way, device) / 1e12
            except Exception as e:  # a tile that this card has no room for, a product that this torch has not
                row["failed"] = (str(e).splitlines() or [type(e).__name__])[0]
                print(f"{inputs:>7} to {outputs:<7}{name:<32}{row['failed'][:60]}", flush=True)
            else:
                reference = reference or row["tops"]
                row["gain"] = row["tops"] / reference
                print(f"{inputs:>7} to {outputs:<7}{name:<32}{row['tops']:>10.1f}{row['gain']:>8.2f}x", flush=True)
            found.append(row)
    return found


def blocks(config: dict[str, Any], rows: int, device: torch.device, precisions: list[str]) -> list[dict[str, Any]]:
    """One row per precision: a block without LoRA, compiled on a GPU. Random weights."""
    generator = torch.Generator(device).manual_seed(0)
    state, heads = random_state(config, False, generator, device), config["num_attention_heads"]
    channels = torch.exp(torch.randn(heads * config["attention_head_dim"], generator=generator, device=device))
    inputs, plain = random_inputs(config, rows, generator, device, channels), plain_of(state, torch.bfloat16)
    found = []
    for precision in precisions:
        held = {name: t.bfloat16() if precision == "none" else t for name, t in state.items()}
        case = Case(precision, precision, packed_by(partial(pack, precision=precision), held), {})
        if device.type == "cuda":
            forward, backward = milliseconds(case, plain, inputs, heads)
        else:
            start = time.perf_counter()
            y, _ = run(case, plain, inputs, torch.bfloat16, heads)
            between = time.perf_counter()
            y.backward(inputs.grad.bfloat16())
            forward, backward = 1e3 * (between - start), 1e3 * (time.perf_counter() - between)
        row = {"rows": rows, "precision": precision, "forward_ms": forward, "backward_ms": backward}
        found.append(row)
        gain = sum(found[0][f"{way}_ms"] for way in ("forward", "backward")) / (forward + backward)
        print(f"a block, {precision:<39}{forward:>10.2f}{backward:>10.2f}{gain:>8.2f}x", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help=f"tokens (default: {ROWS}, tiny: {TINY_ROWS})")
    parser.add_argument("--tiny", action="store_true", help="small shapes, for any machine")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found as one object")
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    if not cuda and not args.tiny:
        print("The real shapes need a GPU; on this machine use --tiny.", file=sys.stderr)
        return 2
    device = torch.device("cuda" if cuda else "cpu")
    rows = args.rows or (TINY_ROWS if args.tiny else ROWS)
    capability = torch.cuda.get_device_capability() if cuda else (0, 0)
    card = f"{torch.cuda.get_device_name()} ({'.'.join(map(str, capability))})" if cuda else "CPU: no times to go by"
    precisions = ["none", *(["float8"] if capability >= FLOAT8_FROM else []), "int8", "qint8"]
    print(f"torch {torch.__version__}, {card}, {rows} rows\n{'TOP/s':>58}{'gain':>9}")
    config = TINY if args.tiny else REAL
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "card": card,
        "products": products(config, rows, device, precisions),
    }
    print(f"{'forward ms':>58}{'back':>10}{'gain':>9}")
    found["blocks"] = blocks(config, rows, device, precisions)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

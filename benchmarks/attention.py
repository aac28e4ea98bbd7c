"""Every exact attention kernel of this card at a training length: its rate forward and backward, in a fixed order and
in any, the memory it takes, whether it repeats itself to the bit, and how far it is from fp32.

    python -m benchmarks.attention --json FILE                   (an NVIDIA card with 8 GiB free; under a minute)
    python -m benchmarks.attention --frames 81x480x832           (another clip)
    python -m benchmarks.attention --tiny                        (the same code on the CPU)

Rates count 4 T^2 D operations forward and 8 T^2 D backward, as the others here do. Ratios are to `flash` in any order.
With `--keys` the gradient of the queries alone is timed as well, all that is asked for where no LoRA of the text's keys
and values trains.
Errors are relative, of output and gradients of two heads against fp32 by the definition, in slices of queries.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from engine.system.device import open_device
from engine.wan import attention
from presets.clips.geometry import Bucket

HEADS, WIDTH, SLICE = 40, 128, 1024
REPEATS = 4


def seconds(device: torch.device, run: Callable[[], Any]) -> float:
    return attention.timed(device, run, REPEATS)[0]


def peak_rows(device: torch.device, run: Callable[[], Any], row: int) -> float:
    """What a call takes at its highest beyond what was there, in rows (tensors of T x D in bf16)."""
    if device.type != "cuda":
        return 0.0
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    return (torch.cuda.max_memory_allocated(device) - before) / row


def by_definition(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients (heads, T, K) in fp32, slice by slice of the queries."""
    scale = q.shape[-1] ** -0.5
    out, dq = torch.empty_like(q), torch.empty_like(q)
    dk, dv = torch.zeros_like(k), torch.zeros_like(v)
    for part in (slice(i, i + SLICE) for i in range(0, q.shape[1], SLICE)):
        p = (q[:, part] @ k.transpose(-1, -2) * scale).softmax(-1)
        out[:, part] = p @ v
        dp = grad[:, part] @ v.transpose(-1, -2)
        ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * scale
        dq[:, part] = ds @ k
        dk += ds.transpose(-1, -2) @ q[:, part]
        dv += p.transpose(-1, -2) @ grad[:, part]
    return [out, dq, dk, dv]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", default="41x512x512", metavar="FxHxW")
    parser.add_argument("--keys", type=int, default=0, help="so many keys, as of a text of 512; as many as tokens")
    parser.add_argument("--tiny", action="store_true", help="toy sizes on the CPU")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    device = open_device("cpu" if args.tiny else "cuda")
    tokens = 96 if args.tiny else Bucket(*(int(v) for v in args.frames.split("x"))).tokens
    heads, width, dtype = (2, 16, torch.float32) if args.tiny else (HEADS, WIDTH, torch.bfloat16)
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    keys = args.keys or tokens
    q, k, v, grad = (
        torch.randn(1, n, heads, width, device=device, dtype=dtype).transpose(1, 2)
        for n in (tokens, keys, keys, tokens)
    )
    exact = by_definition(*(t[0, :2].float() for t in (q, k, v, grad)))
    work, row = 4 * tokens * keys * heads * width, tokens * heads * width * 2
    print(
        f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, torch {torch.__version__},"
        f" {attention.versions()}, {tokens} tokens, {keys} keys, {heads} heads"
    )
    rows: list[dict[str, Any]] = []
    for fixed in (False, True):
        for kernel in ["cpu"] if args.tiny else attention.kernels(device):
            name = f"{kernel}, {'in a fixed order' if fixed else 'in any order'}"
            try:
                ahead = None if kernel in attention.BACKWARD_ONLY else partial(attention.forward, kernel, q, k, v)
                out, lse = attention.forward("flash", q, k, v) if ahead is None else ahead()
                back = partial(attention.backward, kernel, grad, q, k, v, out, lse, deterministic=fixed)
                first = back()
                same = all(torch.equal(a, b) for _ in range(REPEATS) for a, b in zip(first, back(), strict=True))
                found = [t[0, :2].float() for t in (out, *first)]
                errors = [((a - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True)]
                timed = seconds(device, ahead) if ahead else None, seconds(device, back)
                part = partial(attention.backward_of_queries, kernel, grad, q, k, v, out, lse, deterministic=fixed)
                alone = seconds(device, part) if args.keys else None
                memory = peak_rows(device, back, row)
            except Exception as e:
                print(f"{name:<34} does not run: {str(e).splitlines()[0] if str(e) else type(e).__name__}", flush=True)
                rows.append({"kernel": kernel, "fixed_order": fixed, "error": str(e)[:300]})
                continue
            rows.append(
                {
                    "kernel": kernel,
                    "fixed_order": fixed,
                    "tokens": tokens,
                    "keys": keys,
                    "forward_ms": timed[0] and timed[0] * 1e3,
                    "backward_ms": timed[1] * 1e3,
                    "queries_alone_ms": alone and alone * 1e3,
                    "forward_tflops": timed[0] and work / timed[0] / 1e12,
                    "backward_tflops": 2 * work / timed[1] / 1e12,
                    "same_bits": same,
                    "backward_rows": memory,
                    **dict(zip(("out", "dq", "dk", "dv"), errors, strict=True)),
                }
            )
            plain = next(
                (r for r in rows if r["kernel"] in ("flash", "cpu") and not r["fixed_order"] and "error" not in r), None
            )
            ratio = f"{plain['backward_ms'] / rows[-1]['backward_ms']:.2f}x" if plain else "-"
            forward = (
                f"forward {timed[0] * 1e3:7.2f} ms {rows[-1]['forward_tflops']:4.0f} TFLOP/s"
                if timed[0]
                else "(backward alone)"
            )
            print(
                f"{name:<34} {forward:<31}   backward {timed[1] * 1e3:7.2f} ms {rows[-1]['backward_tflops']:4.0f}"
                f" TFLOP/s {ratio:>6}   {'same bits ' if same else 'other bits'}  {memory:5.2f} rows   off by"
                f" {', '.join(f'{e:.2%}' for e in errors)}"
                f"{f'   queries alone {alone * 1e3:.2f} ms' if alone else ''}",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

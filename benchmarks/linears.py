"""What stands around the products of a block's linears, each piece before and after in one run.

    python -m benchmarks.linears [--rows N] [--tiny] [--json FILE]

ms, and GB/s of what must be read and written once: a LoRA's output added to a linear's, with and without a GELU, and
the GELU's gradient; queries normalized and turned by their position, and the gradient of that. Then the three linears
that read the same rows, with LoRA of rank 16, compiled, forward without a graph, forward and backward: one by one
("before") and as a run has them ("now"). --tiny is small and runs anywhere; on a CPU its times mean nothing.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.int8_products import seconds
from benchmarks.precision_error import REAL, TINY, plain_of, random_state
from engine.system.device import compile_alike, fixed_order, open_device
from engine.wan import block as blocks
from engine.wan.block import BEFORE_LINEARS, BlockWeights
from engine.wan.frozen_linear import frozen_linear, lora_branch
from engine.wan.low_rank import low_rank_gelu_gradient, low_rank_sum
from engine.wan.quantize import pack

ROWS, TINY_ROWS = 11264, 64  # 41 frames of 512 x 512
RANK = 16
SUM_TILES = (((128, 128), 8), ((128, 128), 4), ((64, 128), 4), ((64, 256), 8), ((32, 256), 4), ((64, 64), 4))
Row = dict[str, Any]


def told(piece: str, way: str, run: Callable[[], Any], device: torch.device, moved: float = 0.0) -> Row:
    """`moved` bytes at least."""
    row: Row = {"piece": piece, "way": way}
    try:
        row["ms"] = 1e3 * seconds(run, device)
    except Exception as e:  # a shape of program that this card has no room for
        row["failed"] = (str(e).splitlines() or [type(e).__name__])[0]
        print(f"{piece:<44}{way:<22}{row['failed'][:50]}", flush=True)
        return row
    if moved:
        row["gb_per_s"] = moved / row["ms"] / 1e6
    rate = f"{row['gb_per_s']:>10.0f}" if moved else ""
    print(f"{piece:<44}{way:<22}{row['ms']:>10.3f}{rate}", flush=True)
    return row


def adding(rows: int, columns: int, device: torch.device, *, gelu: bool) -> list[Row]:
    """A LoRA's output to a linear's, which is read and written once at least."""
    generator = torch.Generator(device).manual_seed(0)
    y, ax, b = (
        torch.randn(shape, generator=generator, device=device).bfloat16()
        for shape in ((rows, columns), (rows, RANK), (columns, RANK))
    )
    say = partial(told, f"add LoRA{', GELU' if gelu else ''}, {columns} columns", device=device, moved=4.0 * y.numel())

    def by_torch(y: torch.Tensor, ax: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        out = y + F.linear(ax, b)
        return F.gelu(out, approximate="tanh") if gelu else out

    found = []
    if device.type == "cuda":
        from engine.kernels import triton_low_rank  # Triton comes with the CUDA builds of torch alone

        found.append(say("before, compiled", partial(torch.compile(by_torch), y, ax, b)))
        for tile, warps in SUM_TILES:
            way = partial(triton_low_rank.low_rank_sum, y, ax, b, gelu, tile, warps)
            found.append(say(f"{tile[0]}x{tile[1]}, {warps} warps", way))
    found.append(say("now", partial(low_rank_sum, y, ax, b, gelu)))
    return found


def sloping(rows: int, columns: int, device: torch.device) -> list[Row]:
    """The gradient before a GELU, with that of the linear after it in its two parts."""
    generator = torch.Generator(device).manual_seed(0)
    g, y, ga, a, ax, b = (
        torch.randn(shape, generator=generator, device=device).bfloat16()
        for shape in (*[(rows, columns)] * 2, *[(rows, RANK), (columns, RANK)] * 2)
    )
    inner = y + F.linear(ax, b)
    say = partial(told, f"gradient of a GELU, {columns} columns", device=device, moved=6.0 * y.numel())

    def by_torch(g: torch.Tensor, ga: torch.Tensor, a: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten.gelu_backward(g + F.linear(ga, a), inner, approximate="tanh")

    def now() -> torch.Tensor:
        return low_rank_gelu_gradient(low_rank_sum(g, ga, a, False), y, ax, b)

    before = torch.compile(by_torch) if device.type == "cuda" else by_torch
    return [say("before", partial(before, g, ga, a, inner)), say("now", now)]


def placing(config: dict[str, Any], rows: int, device: torch.device) -> list[Row]:
    """Queries or keys, after their linear."""
    heads, width = config["num_attention_heads"], config["attention_head_dim"]
    generator = torch.Generator(device).manual_seed(0)
    x, g = (torch.randn(1, rows, heads * width, generator=generator, device=device).bfloat16() for _ in range(2))
    angles = torch.randn(1, rows, 1, width // 2, generator=generator, device=device).repeat_interleave(2, dim=-1)
    weight, cos, sin = torch.ones(heads * width, device=device).bfloat16(), angles.cos(), angles.sin()

    def before(x: torch.Tensor) -> torch.Tensor:
        return blocks._rotated(blocks._rms_norm(x, weight).unflatten(2, (heads, -1)), cos, sin)

    def now(x: torch.Tensor) -> torch.Tensor:
        return blocks._placed(x, weight, cos, sin, heads)

    found = []
    for way, function in (("before", before), ("now", now)):
        run = torch.compile(function) if device.type == "cuda" else function
        with torch.no_grad():
            found.append(told("norm and rope", way, partial(run, x), device, 4.0 * x.numel()))
        leaf = x.clone().requires_grad_()
        back = partial(torch.autograd.grad, run(leaf), leaf, g.view(1, rows, heads, width), retain_graph=True)
        found.append(told("gradient of norm and rope", way, back, device, 6.0 * x.numel()))
    return found


def one_by_one(x: torch.Tensor, block: BlockWeights) -> list[torch.Tensor]:
    out = []
    for name in BEFORE_LINEARS:
        y = frozen_linear(x, block.weights[name], block.plain[f"{name}.bias"], block.precision)
        out.append(y + lora_branch(x, *block.lora[name], block.strength))
    return out


def together(x: torch.Tensor, block: BlockWeights) -> list[torch.Tensor]:
    return blocks._linears(BEFORE_LINEARS, x, block)


def sharing(config: dict[str, Any], rows: int, device: torch.device, precision: str) -> list[Row]:
    """q, k and v of a block, with LoRA."""
    generator = torch.Generator(device).manual_seed(0)
    state, heads = random_state(config, False, generator, device), config["num_attention_heads"]
    width = heads * config["attention_head_dim"]
    dtype = torch.bfloat16
    weights = {name: pack(state[f"{name}.weight"].to(dtype), precision) for name in BEFORE_LINEARS}
    lora = {
        name: tuple(
            (torch.randn(shape, generator=generator, device=device) * 0.01).requires_grad_()
            for shape in ((RANK, width), (width, RANK))
        )
        for name in BEFORE_LINEARS
    }
    one = torch.ones((), device=device)
    block = BlockWeights(weights, plain_of(state, dtype), {}, lora, one, heads, precision)  # type: ignore[arg-type]
    x = torch.randn(1, rows, width, generator=generator, device=device).to(dtype)
    grads = [torch.randn(1, rows, width, generator=generator, device=device).to(dtype) for _ in BEFORE_LINEARS]
    found = []
    for way, function in (("before", one_by_one), ("now", together)):
        run = torch.compile(function) if device.type == "cuda" else function
        say = partial(told, way=way, device=device)
        with torch.no_grad():
            found.append(say(f"q, k, v of {rows} rows, no graph", run=partial(run, x, block)))
        leaf = x.clone().requires_grad_()
        found.append(say(f"q, k, v of {rows} rows, forward", run=partial(run, leaf, block)))
        leaves = [leaf, *(t for pair in lora.values() for t in pair)]
        back = partial(torch.autograd.grad, run(leaf, block), leaves, grads, retain_graph=True)
        found.append(say(f"q, k, v of {rows} rows, backward", run=back))
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
    device = open_device()
    config, rows = TINY if args.tiny else REAL, args.rows or (TINY_ROWS if args.tiny else ROWS)
    width, ffn = config["num_attention_heads"] * config["attention_head_dim"], config["ffn_dim"]
    card = torch.cuda.get_device_name() if cuda else "CPU: no times to go by"
    print(f"torch {torch.__version__}, {card}, {rows} rows, rank {RANK}\n{'ms':>76}{'GB/s':>10}")
    compile_alike()
    found: list[Row] = []
    with fixed_order(cuda):
        for columns in (width, ffn):
            for gelu in (False, True):
                found += adding(rows, columns, device, gelu=gelu)
        found += sloping(rows, ffn, device)
        found += placing(config, rows, device)
        found += sharing(config, rows, device, "float8" if cuda else "none")
    if args.json:
        args.json.write_text(json.dumps({"torch": torch.__version__, "card": card, "found": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The LoRA's gradients of a few blocks under each kind of plan, beside those of an eager run.

    python -m benchmarks.plan_gradients [--tiny] [--plans NAME ...] [--json FILE]

Four blocks of the real shape with random weights in float8, a clip of 21x384x384; --tiny: small ones on the CPU. Each
row has the norm of the gradient of each block's LoRA, |g - eager| / |eager| over all of them, and of the block that is
furthest off: some tenths of a per cent of rounding where all is well, 100% where a block learns nothing. To be run on a
card after every change of the block, of the executor or of torch's version: what the compiler makes there is not what
it makes on a CPU. Ends with 1 where a block is off by more than 2%.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch._dynamo import config

from benchmarks.random_expert import REAL, TINY, expert
from engine.executor.block_executor import BlockExecutor
from engine.executor.executor_resources import ExecutorResources
from engine.system.device import VARIANTS
from engine.wan import attention
from presets.planner.plan import Plan

BLOCKS = 4
MOST_OFF = 0.02


def plans(tokens: int, precision: Any, *, cuda: bool) -> dict[str, Plan]:
    common: dict[str, Any] = {"precision": precision, "slots": 2}
    found = {
        "eager": Plan(**common, compiled=False),
        "recomputed": Plan(**common),
        "recomputed, any size": Plan(**common, any_size=True),
        "recomputed in two chunks": Plan(**common, chunk=tokens // 2),
        "hidden states saved": Plan(**common, save_hidden=True),
        "the same, any size": Plan(**common, save_hidden=True, any_size=True),
        "the same, in two chunks": Plan(**common, save_hidden=True, chunk=tokens // 2),
        "half kept": Plan(**common, resident=BLOCKS, kept=BLOCKS // 2),
        "all kept": Plan(**common, resident=BLOCKS, kept=BLOCKS),
    }
    return found | ({"CUDA graphs": Plan(**common, graphed=tokens)} if cuda else {})


def apart(found: list[torch.Tensor], right: list[torch.Tensor]) -> tuple[float, float]:
    """|found - right| / |right| of all blocks as one, and of the worst; not a number where right is 0."""
    differences = torch.stack([(a - b).norm() for a, b in zip(found, right, strict=True)])
    sizes = torch.stack([g.norm() for g in right])
    return float(differences.norm() / sizes.norm()), float((differences / sizes).max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small blocks, on the CPU")
    parser.add_argument("--plans", nargs="+", metavar="NAME", help="these alone, beside the eager one")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        print("The real shape needs a GPU; on this machine use --tiny.", file=sys.stderr)
        return 2
    config.recompile_limit = VARIANTS  # as the trainer has it: beyond the limit nothing is compiled
    device = torch.device("cpu" if args.tiny else "cuda")
    shape = TINY if args.tiny else {**REAL, "num_layers": BLOCKS}
    dtype, precision = (torch.float32, "qint8") if args.tiny else (torch.bfloat16, "float8")
    frames, side = (2, 8) if args.tiny else (6, 48)
    torch.manual_seed(0)
    weights, parameters = expert("high_noise", shape, precision, device, dtype)
    made = weights.outer.config
    tokens = frames * (side // 2) ** 2
    kernels, _ = attention.choose(
        device,
        tokens=tokens,
        heads=made.num_attention_heads,
        width=made.attention_head_dim,
        dtype=dtype,
        deterministic=True,
    )
    x = torch.randn(1, made.in_channels, frames, side, side, device=device, dtype=dtype)
    text = torch.randn(1, 512, made.text_dim, device=device, dtype=dtype)
    timestep, goal = torch.tensor([700.0], device=device), torch.randn(1, 16, frames, side, side, device=device)

    def gradients(plan: Plan) -> tuple[float, list[torch.Tensor]]:
        """(loss, the gradients of each block's LoRA in one row), of a second step: CUDA graphs are launched first."""
        run = BlockExecutor(weights, ExecutorResources(plan, kernels, weights.block_bytes, device))
        for _ in range(2):
            for parameter in parameters.values():
                parameter.grad = None
            loss = run.forward_backward(x, timestep, text, lambda y: (y.float() - goal).square().mean())
        blocks = [[p for pair in block.values() for p in pair] for block in weights.lora]
        none = torch.zeros_like
        return float(loss), [torch.cat([(none(p) if p.grad is None else p.grad).flatten() for p in b]) for b in blocks]

    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if not args.tiny else 'CPU'}, {tokens} tokens")
    rows, right = list[dict[str, Any]](), list[torch.Tensor]()
    for name, plan in plans(tokens, precision, cuda=not args.tiny).items():
        if args.plans and name not in ("eager", *args.plans):
            continue
        loss, found = gradients(plan)
        right = right or found
        norms = [float(g.norm()) for g in found]
        off, worst = apart(found, right)
        rows.append({"plan": name, "loss": loss, "norms": norms, "off": off, "worst": worst})
        shown = "  ".join(f"{norm:.4g}" for norm in norms)
        print(f"{name:<26}loss {loss:.6f}  {shown}  off {off:.3%}, a block {worst:.3%}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")
    return int(not all(row["worst"] <= MOST_OFF for row in rows))


if __name__ == "__main__":
    sys.exit(main())

"""One block's gradients, ours in bf16 and float8 beside diffusers' own in eager bf16, all against fp32.

    python -m benchmarks.block_gradients [--tiny] [--tokens N] [--json FILE]

The block has the real shape (width 5120, 40 heads, feed-forward 13824), random weights that bf16 holds exactly, and a
LoRA of rank 16 on all ten linears; it needs a GPU with 20 GiB free. --tiny is a small one for any machine. The fp32
reference is diffusers' block with the LoRA in peft's layers. Errors are relative: |y' - y| / |y - x| of the output and
the same of the input's gradient (what the block adds, so that the residual path does not hide them), |g' - g| / |g|
over all ten A and all ten B.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model

from benchmarks.precision_error import REAL, TEXT, TINY, Inputs, State, random_inputs, random_state
from benchmarks.random_expert import REAL as EXPERT
from benchmarks.random_expert import empty_model
from engine.executor.block_executor import BlockExecutor
from engine.executor.executor_resources import ExecutorResources
from engine.executor.expert_weights import ExpertWeights
from engine.recovery.expert_reader import block_module
from engine.system.placement import Placement
from engine.wan import attention
from engine.wan.block import LINEARS, Lora, PassInputs, linear_shapes
from presets.planner.plan import Plan, Precision
from tests.helpers.training.packing import packed_blocks

RANK = 16
TOKENS, TINY_TOKENS = 4096, 96
# output, gradient of the input, gradients of A and B by name
Result = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]


def branches(config: dict[str, Any], device: torch.device) -> Lora:
    g = torch.Generator(device).manual_seed(3)
    out: Lora = {}
    for name, (n, k) in linear_shapes(config).items():
        out[name] = tuple(
            torch.nn.Parameter(torch.randn(shape, generator=g, device=device) * size)
            for shape, size in (((RANK, k), 0.5 / k**0.5), ((n, RANK), 0.05))
        )  # type: ignore[assignment]
    return out


def gradients_of(pairs: Lora) -> dict[str, torch.Tensor]:
    out = {}
    for name, pair in pairs.items():
        for side, p in zip("AB", pair, strict=True):
            assert p.grad is not None
            out[f"{name}.{side}"] = p.grad.float()
            p.grad = None
    return out


def diffusers_block(config: dict[str, Any], state: State, pairs: Lora, inputs: Inputs, dtype: torch.dtype) -> Result:
    module: Any = inject_adapter_in_model(
        LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(LINEARS), init_lora_weights=False),
        block_module(config, state, Placement(inputs.x.device, dtype, pinned=False)),
    )
    module.requires_grad_(False)
    for name, (a, b) in pairs.items():
        layer = module.get_submodule(name)
        layer.lora_A["default"].weight, layer.lora_B["default"].weight = a, b
    x = inputs.x.to(dtype, copy=True).requires_grad_()
    y = module(x, inputs.text.to(dtype), inputs.time.to(dtype), (inputs.cos, inputs.sin))
    y.backward(inputs.grad.to(dtype))
    assert x.grad is not None
    return y.detach().float(), x.grad.float(), gradients_of(pairs)


def our_block(
    config: dict[str, Any],
    state: State,
    pairs: Lora,
    inputs: Inputs,
    plan: Plan,
    kernels: attention.Attention,
    dtype: torch.dtype,
) -> Result:
    """The executor's own way through one block: streamed in, forward, offload, recompute, backward."""
    device = inputs.x.device
    torch._dynamo.reset()  # each precision is a variant of its own, and their number is limited
    packed = packed_blocks([{k: v.to(dtype) for k, v in state.items()}], plan.precision, pinned=device.type == "cuda")
    outer = empty_model(
        {**EXPERT, **{k: config[k] for k in ("num_attention_heads", "attention_head_dim", "ffn_dim")}},
        device,
        dtype,
        num_layers=0,
    )
    weights = ExpertWeights("block", outer, packed, [pairs], 1.0)
    run = BlockExecutor(weights, ExecutorResources(plan, kernels, weights.block_bytes, device))
    activations = run.resources.activations
    x, text, time = inputs.x.to(dtype), inputs.text.to(dtype), inputs.time.to(dtype)
    given = PassInputs(text, time, inputs.cos, inputs.sin, torch.ones((), device=device))
    visits = run._visits([0, 0], given.strength)
    with torch.no_grad():
        block, held = next(visits)
        y, a, lse = run._forward_block(held, x, given)
        activations.put(block, (x, a, lse))
        activations.flush()
    block, held = next(visits)
    g = inputs.grad.to(dtype, copy=True)
    x, a, lse = activations.get(block)
    run._backward_block(held, x, a, lse, g, given)
    return y.float(), g.float(), gradients_of(pairs)


def errors(ours: Result, exact: Result, inputs: Inputs) -> dict[str, float]:
    (y, gx, lora_grads), (y0, gx0, lora_grads0) = ours, exact
    found = {
        "output": float((y - y0).norm() / (y0 - inputs.x).norm()),
        "input_gradient": float((gx - gx0).norm() / (gx0 - inputs.grad).norm()),
    }
    for side in "AB":
        names = [name for name in lora_grads0 if name.endswith(f".{side}")]
        lost = sum(float((lora_grads[name] - lora_grads0[name]).square().sum()) for name in names)
        found[f"{side}_gradient"] = (lost / sum(float(lora_grads0[name].square().sum()) for name in names)) ** 0.5
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small block, for any machine")
    parser.add_argument("--tokens", type=int, help=f"length of the sequence (default: {TOKENS}, tiny: {TINY_TOKENS})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as a list of objects")
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    if not cuda and not args.tiny:
        print("The real shape needs a GPU; on this machine use --tiny.", file=sys.stderr)
        return 2
    device = torch.device("cuda" if cuda else "cpu")
    config: dict[str, Any] = TINY if args.tiny else REAL
    tokens = args.tokens or (TINY_TOKENS if args.tiny else TOKENS)
    generator = torch.Generator(device).manual_seed(0)
    state = {k: v.bfloat16().float() for k, v in random_state(config, False, generator, device).items()}
    channels = torch.exp(
        torch.randn(config["num_attention_heads"] * config["attention_head_dim"], generator=generator, device=device)
    )
    drawn = random_inputs(config, tokens, generator, device, channels)
    inputs = drawn._replace(**{name: getattr(drawn, name).bfloat16().float() for name in ("x", "text", "time", "grad")})
    pairs = branches(config, device)
    kernels, why = attention.choose(
        device,
        tokens=tokens,
        heads=config["num_attention_heads"],
        width=config["attention_head_dim"],
        dtype=torch.bfloat16,
        deterministic=False,
    )
    print(
        f"torch {torch.__version__}, {torch.cuda.get_device_name() if cuda else 'CPU'}, {tokens} tokens, {TEXT} of"
        f" text; attention by {kernels.text}: {why}"
    )
    print(f"{'against fp32':<38}{'output':>10}{'input grad':>12}{'A grad':>10}{'B grad':>10}")
    exact = diffusers_block(config, state, pairs, inputs, torch.float32)
    rows: list[dict[str, Any]] = []

    def tell(name: str, result: Result) -> None:
        row = {"case": name, "tokens": tokens, **errors(result, exact, inputs)}
        rows.append(row)
        print(
            f"{name:<38}{row['output']:>10.3%}{row['input_gradient']:>12.3%}{row['A_gradient']:>10.3%}{row['B_gradient']:>10.3%}",
            flush=True,
        )

    tell("diffusers, eager, bf16, LoRA in fp32", diffusers_block(config, state, pairs, inputs, torch.bfloat16))
    with torch.autocast(device.type, torch.bfloat16):
        tell("diffusers, eager, bf16, autocast", diffusers_block(config, state, pairs, inputs, torch.bfloat16))
    on_a_card: list[tuple[Precision, bool, int]] = [
        ("none", False, 0),
        ("none", True, 0),
        ("none", True, tokens // 4),
        ("float8", True, 0),
        ("int8", True, 0),
        ("qfloat8", True, 0),
        ("qint8", True, 0),
        ("qint4", True, 0),
    ]
    elsewhere: list[tuple[Precision, bool, int]] = [
        ("none", False, 0),
        ("none", False, tokens // 4),
        ("qint8", False, 0),
    ]
    for precision, compiled, chunk in on_a_card if cuda else elsewhere:
        plan = Plan(precision=precision, compiled=compiled, chunk=chunk, slots=1)
        name = (
            f"ours, {'bf16' if precision == 'none' else precision},"
            f" {'compiled' if compiled else 'eager'}{f', {chunk} at a time' if chunk else ''}"
        )
        tell(name, our_block(config, state, pairs, inputs, plan, kernels, torch.bfloat16))
    if not cuda:  # where there is no rounding to blame
        tell(
            "ours, fp32",
            our_block(
                config, state, pairs, inputs, Plan(compiled=False, chunk=tokens // 4, slots=1), kernels, torch.float32
            ),
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

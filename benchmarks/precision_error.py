"""What each precision costs in accuracy, on one transformer block: output and input gradient against fp32.

    python -m benchmarks.precision_error [--tiny] [--tokens N] [--all] [--timed] [--json FILE]

The block has the real shape (width 5120, 40 heads, feed-forward 13824) and needs a GPU; --tiny is a small one for any
machine. Weights are random: Gaussian, and Student's t with 3 degrees of freedom, whose outliers are harder on 4 bits.
Inputs have channels of very different size that vary together, as those of a trained model do.

Errors are relative to what the block adds: |y' - y| / |y - x|, and the same for the gradient of the input, so that the
residual path does not hide them. `weight` is |W' - W| / |W| over the ten linears. Weights are packed as the engine
packs them; the row of bf16 is what that has by itself. A second table is of one linear alone, whose activations and
gradients have no outliers, channels of log-normal size, or one channel of 500 that is 50 times as large: how the
precisions bear them, int8 with and without its rotation; the last columns divide by int8. --all adds adapters weighted
by whole second moments, which take minutes; --timed compiles each block on a GPU (15 s a row) and times it.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from engine.recovery.build import correct
from engine.recovery.expert_reader import block_module
from engine.recovery.input_moments import READERS, Moment, moment_of
from engine.system.placement import Placement
from engine.wan import block as wan_block
from engine.wan.attention import CPU, TextKernels
from engine.wan.block import (
    LINEARS,
    NORMS,
    BlockWeights,
    Lora,
    Plain,
    Weights,
    linear_shapes,
    post_attention,
    pre_attention,
    text_kv,
)
from engine.wan.frozen_linear import Packed, frozen_linear, unpack_weight
from engine.wan.int8_linear import Int8Product, pack_int8
from engine.wan.quantize import pack

REAL: dict[str, Any] = {
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "ffn_dim": 13824,
    "qk_norm": "rms_norm_across_heads",
    "cross_attn_norm": True,
    "eps": 1e-6,
    "added_kv_proj_dim": None,
}
TINY: dict[str, Any] = {**REAL, "num_attention_heads": 4, "attention_head_dim": 64, "ffn_dim": 512}
TOKENS, TINY_TOKENS, TEXT = 4096, 96, 512
RUNS = 10
TAILS = 3  # degrees of freedom of the heavy-tailed weights: the fewest with a variance, which is TAILS / (TAILS - 2)

State = dict[str, torch.Tensor]


class Inputs(NamedTuple):
    x: torch.Tensor
    text: torch.Tensor
    time: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    grad: torch.Tensor


class Case(NamedTuple):
    """One way to hold the weights. `recovery` is an accuracy recovery adapter, or nothing."""

    name: str
    precision: str
    weights: Weights
    recovery: Lora


def random_state(config: dict[str, Any], heavy: bool, generator: torch.Generator, device: torch.device) -> State:
    """A block's tensors in fp32. Weights have a standard deviation of 1.4 / sqrt(inputs): 0.02 at the real width."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    state: State = {}
    for name, shape in linear_shapes(config).items():
        w = torch.randn(shape, generator=generator, device=device) * (1.4 / shape[1] ** 0.5)
        # a Gaussian over the root of a chi-squared is Student's t; scaled back to the variance of the Gaussian
        if heavy:
            chi = torch.stack(
                [torch.randn(shape, generator=generator, device=device).square() for _ in range(TAILS)]
            ).mean(0)
            w = w / chi.clamp(min=1e-3).sqrt() / (TAILS / (TAILS - 2)) ** 0.5
        state[f"{name}.weight"] = w
        state[f"{name}.bias"] = torch.randn(shape[0], generator=generator, device=device) * 0.02
    state |= {f"{name}.weight": torch.ones(width, device=device) for name in (*NORMS, "norm2")}
    state["norm2.bias"] = torch.zeros(width, device=device)
    state["scale_shift_table"] = torch.randn(1, 6, width, generator=generator, device=device) * 0.5
    return state


def random_inputs(
    config: dict[str, Any], tokens: int, generator: torch.Generator, device: torch.device, channels: torch.Tensor
) -> Inputs:
    """`channels` (D,) are the sizes of the hidden state's channels: the same for calibration and measurement."""
    heads_width = config["attention_head_dim"]
    width = channels.numel()

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    common = normal(1, tokens, 8) @ normal(1, 8, width)  # what makes channels vary together
    x = (normal(1, tokens, width) + common / 4) * channels
    angles = normal(1, tokens, 1, heads_width // 2).repeat_interleave(2, dim=-1)
    return Inputs(
        x, normal(1, TEXT, width), normal(1, 6, width) * 0.3, angles.cos(), angles.sin(), normal(1, tokens, width)
    )


def calibrated(config: dict[str, Any], state: State, inputs: Inputs, *, full: bool) -> dict[tuple[int, str], Moment]:
    """What the linears of the unquantized block receive."""
    module = block_module(config, state, Placement(inputs.x.device, torch.float32, pinned=False))
    moments = {(0, name): Moment() for name in READERS}
    for (_, name), moment in moments.items():
        module.get_submodule(name).register_forward_pre_hook(
            lambda _m, args, moment=moment: moment.add(args[0], full=full)
        )
    with torch.no_grad():
        module(inputs.x, inputs.text, inputs.time, (inputs.cos, inputs.sin))
    return moments


def product_errors(width: int, rows: int, device: torch.device, *, heavy: bool) -> list[dict[str, Any]]:
    """One row per kind of channels and way to multiply: of one linear of width x width."""
    generator = torch.Generator(device).manual_seed(1)
    config = {"num_attention_heads": 1, "attention_head_dim": width, "ffn_dim": width}
    w = random_state(config, heavy, generator, device)["attn1.to_q.weight"]
    even = torch.ones(width, device=device)
    spread = torch.exp(torch.randn(width, generator=generator, device=device))
    few = torch.where(torch.arange(width, device=device) % 500 == 250, 50.0, 1.0)
    zero = torch.zeros(width, device=device)
    ways: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "none (bf16)": lambda x: frozen_linear(x, pack(w.bfloat16(), "none"), zero.bfloat16(), "none"),
        "qint8": lambda x: frozen_linear(x, pack(w, "qint8"), zero.bfloat16(), "qint8"),
        "float8": lambda x: frozen_linear(x, pack(w, "float8"), zero.bfloat16(), "float8"),
        "int8, not rotated": lambda x: Int8Product.apply(x, *pack_int8(w, 1), zero, 1),
        "int8": lambda x: frozen_linear(x, pack(w, "int8"), zero, "int8"),
    }
    rows_of: list[dict[str, Any]] = []
    for channels, sizes in (("even", even), ("log-normal", spread), ("outliers", few)):
        x, g = (torch.randn(rows, width, generator=generator, device=device) * sizes for _ in range(2))
        exact = {"output": x @ w.t(), "gradient": g @ w}
        found: list[dict[str, Any]] = []
        for way, multiply in ways.items():
            leaf = x.bfloat16().requires_grad_()
            y = multiply(leaf)
            y.backward(g.bfloat16())
            assert leaf.grad is not None
            gave = {"output": y.detach().float(), "gradient": leaf.grad.float()}
            errors = {f"{of}_error": float((gave[of] - right).norm() / right.norm()) for of, right in exact.items()}
            found.append(
                {"weights": f"Student t({TAILS})" if heavy else "Gaussian", "channels": channels, "way": way, **errors}
            )
        best = found[-1]
        for row in found:
            row |= {f"{of}_ratio": row[f"{of}_error"] / best[f"{of}_error"] for of in exact}
            numbers = "".join(f"{row[f'{of}_error']:>10.3%}" for of in exact)
            ratios = "".join(f"{row[f'{of}_ratio']:>9.2f}x" for of in exact)
            print(f"{row['weights']:<14}{channels:<12}{row['way']:<20}{numbers}{ratios}", flush=True)
        rows_of += found
    return rows_of


Parts = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]


def by_torch(q_BTNK: torch.Tensor, k_BSNK: torch.Tensor, v_BSNK: torch.Tensor, _kernels: TextKernels) -> torch.Tensor:
    """In place of every attention here: no other kernel of a card computes in fp32."""
    q, k, v = (t.transpose(1, 2) for t in (q_BTNK, k_BSNK, v_BSNK))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def run(
    case: Case,
    plain: Plain,
    inputs: Inputs,
    dtype: torch.dtype,
    heads: int,
    parts: Parts = (pre_attention, text_kv, post_attention),
) -> tuple[torch.Tensor, torch.Tensor]:
    """(output, leaf): the block's forward in `dtype`, with a graph from the leaf."""
    one = torch.ones((), device=inputs.x.device)
    x = inputs.x.to(dtype, copy=True).requires_grad_()
    text, time = inputs.text.to(dtype), inputs.time.to(dtype)
    first, between, last = parts
    block = BlockWeights(case.weights, plain, case.recovery, {}, one, heads, case.precision)
    q, k, v = first(x, time, inputs.cos, inputs.sin, block)
    kv = between(text, block)
    kernels = CPU.to_text  # `by_torch` asks for none of them
    a = by_torch(q, k, v, kernels).flatten(2, 3)
    return last(x, a, *kv, time, block, kernels), x


def plain_of(state: State, dtype: torch.dtype) -> Plain:
    fp32 = ("norm2.weight", "norm2.bias", "scale_shift_table")
    weights = {f"{name}.weight" for name in LINEARS}
    return {k: v.float() if k in fp32 else v.to(dtype) for k, v in state.items() if k not in weights}


def packed_by(pack: Callable[[torch.Tensor], Packed], state: State) -> Weights:
    return {name: pack(state[f"{name}.weight"]) for name in LINEARS}


def adapter(state: State, rank: int, moments: dict[tuple[int, str], Moment] | None, device: torch.device) -> Lora:
    out: Lora = {}
    for name in LINEARS:
        (a, b), _ = correct(
            state[f"{name}.weight"],
            rank,
            grid="qint4",
            moment=moment_of(moments, 0, name) if moments else None,
            key=name,
        )
        out[name] = a.to(device), b.to(device)
    return out


def cases(config: dict[str, Any], state: State, calibration: Inputs, *, everything: bool) -> list[Callable[[], Case]]:
    """Made one at a time: a real block in fp32 and its copies fill a card."""
    device = calibration.x.device

    def quantized(precision: str) -> Callable[[], Case]:
        return lambda: Case(precision, precision, packed_by(lambda w: pack(w, precision), state), {})

    def recovered(rank: int, weighting: str) -> Callable[[], Case]:
        def make() -> Case:
            moments = calibrated(config, state, calibration, full=weighting == "full") if weighting != "plain" else None
            return Case(
                f"qint4+ara {rank}, {weighting}",
                "qint4",
                packed_by(lambda w: pack(w, "qint4"), state),
                adapter(state, rank, moments, device),
            )

        return make

    def bf16() -> Case:
        return Case("none (bf16)", "none", packed_by(lambda w: (w.bfloat16(),), state), {})

    return [
        bf16,
        *(quantized(p) for p in ("float8", "int8", "qfloat8", "qint8", "qint4")),
        recovered(16, "plain"),
        recovered(16, "diagonal"),
        recovered(64, "diagonal"),
        *([recovered(16, "full"), recovered(64, "full")] if everything else []),
    ]


def weight_error(case: Case, state: State) -> float:
    lost = whole = 0.0
    for name in LINEARS:
        w = state[f"{name}.weight"]
        value = unpack_weight(case.weights[name], case.precision, torch.float32)
        if name in case.recovery:
            a, b = case.recovery[name]
            value += b.float() @ a.float()
        lost, whole = lost + float((value - w).square().sum()), whole + float(w.square().sum())
    return (lost / whole) ** 0.5


def milliseconds(case: Case, plain: Plain, inputs: Inputs, heads: int) -> tuple[float, float]:
    """Median forward and backward of the compiled block on the GPU."""
    torch._dynamo.reset()  # it stops compiling a function after eight variants
    compiled: Parts = torch.compile(pre_attention), torch.compile(text_kv), torch.compile(post_attention)
    grad = inputs.grad.bfloat16()
    times: list[tuple[float, float]] = []
    for _ in range(RUNS + 3):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
        marks[0].record()
        y, _ = run(case, plain, inputs, torch.bfloat16, heads, compiled)
        marks[1].record()
        y.backward(grad)
        marks[2].record()
        torch.cuda.synchronize()
        times.append((marks[0].elapsed_time(marks[1]), marks[1].elapsed_time(marks[2])))
    forward, backward = zip(*times[3:], strict=True)
    return statistics.median(forward), statistics.median(backward)


def measure(
    config: dict[str, Any], tokens: int, device: torch.device, *, heavy: bool, timed: bool, everything: bool
) -> list[dict[str, Any]]:
    """One row per precision."""
    generator = torch.Generator(device).manual_seed(0)
    state = random_state(config, heavy, generator, device)
    width = config["num_attention_heads"] * config["attention_head_dim"]
    channels = torch.exp(torch.randn(width, generator=generator, device=device))
    calibration, inputs = (random_inputs(config, tokens, generator, device, channels) for _ in range(2))
    heads = config["num_attention_heads"]
    exact = Case("fp32", "none", packed_by(lambda w: (w,), state), {})
    y, x = run(exact, plain_of(state, torch.float32), inputs, torch.float32, heads)
    y.backward(inputs.grad)
    assert x.grad is not None
    added, added_grad = (y - x).detach().norm(), (x.grad - inputs.grad).norm()
    expected, expected_grad = y.detach(), x.grad
    del y, x
    rows = []
    plain = plain_of(state, torch.bfloat16)
    for make in cases(config, state, calibration, everything=everything):
        case = make()
        y, x = run(case, plain, inputs, torch.bfloat16, heads)
        y.backward(inputs.grad.bfloat16())
        assert x.grad is not None
        stored = sum(
            t.numel() * t.element_size() for parts in (*case.weights.values(), *case.recovery.values()) for t in parts
        )
        row: dict[str, Any] = {
            "weights": f"Student t({TAILS})" if heavy else "Gaussian",
            "precision": case.name,
            "weight_error": weight_error(case, state),
            "output_error": float((y.detach().float() - expected).norm() / added),
            "gradient_error": float((x.grad.float() - expected_grad).norm() / added_grad),
            "mib": stored / 2**20,
        }
        del y, x
        if timed:
            row["forward_ms"], row["backward_ms"] = milliseconds(case, plain, inputs, heads)
        rows.append(row)
        print(line(row), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    errors = "".join(f"{row[f'{of}_error']:>10.3%}" for of in ("weight", "output", "gradient"))
    text = f"{row['weights']:<14}{row['precision']:<24}{errors}{row['mib']:>10.1f}"
    return text + (f"{row['forward_ms']:>10.2f}{row['backward_ms']:>10.2f}" if "forward_ms" in row else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small block, for any machine")
    parser.add_argument("--tokens", type=int, help=f"length of the sequence (default: {TOKENS}, tiny: {TINY_TOKENS})")
    parser.add_argument("--all", action="store_true", help="costlier adapters as well")
    parser.add_argument("--timed", action="store_true", help="time the compiled block, on a GPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as a list of objects")
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    if not cuda and not args.tiny:
        print("The real shape needs a GPU; on this machine use --tiny.", file=sys.stderr)
        return 2
    device, timed = torch.device("cuda" if cuda else "cpu"), args.timed and cuda
    vars(wan_block)["text_attention"] = by_torch
    tokens = args.tokens or (TINY_TOKENS if args.tiny else TOKENS)
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if cuda else 'CPU'}, {tokens} tokens")
    print(
        f"{'weights':<14}{'precision':<24}{'weight':>10}{'output':>10}{'gradient':>10}{'MiB':>10}"
        + (f"{'fwd ms':>10}{'bwd ms':>10}" if timed else "")
    )
    rows = [
        row
        for heavy in (False, True)
        for row in measure(TINY if args.tiny else REAL, tokens, device, heavy=heavy, timed=timed, everything=args.all)
    ]
    print(f"\n{'weights':<14}{'channels':<12}{'one linear':<20}{'output':>10}{'gradient':>10}{'to int8':>20}")
    width = 512 if args.tiny else REAL["num_attention_heads"] * REAL["attention_head_dim"]
    for heavy in (False, True):
        rows += product_errors(width, tokens, device, heavy=heavy)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

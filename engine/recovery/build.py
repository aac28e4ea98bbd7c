"""Builds an adapter: for each linear the best low-rank correction of what its quantization lost, one block at a time.

The correction of one weight is `engine.recovery.low_rank`'s, what weighs it `engine.recovery.calibrate`'s. The file is
written by `engine.adapters.recovery_file`.

N outputs, K inputs, R rank, P probe rows.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from engine.recovery.calibrate import CalibrationSample, Walk
from engine.recovery.expert_reader import ExpertReader, block_module
from engine.recovery.input_moments import BlockLinear, Moment, moment_of
from engine.recovery.low_rank import best_correction
from engine.system.placement import Placement
from engine.wan.block import LINEARS, Lora
from engine.wan.frozen_linear import unpack_weight
from engine.wan.quantize import INT4, Grid, pack

KINDS = {
    "self-attention q, k, v": LINEARS[:3],
    "self-attention out": LINEARS[3:4],
    "cross-attention q": LINEARS[4:5],
    "cross-attention k, v": LINEARS[5:7],
    "cross-attention out": LINEARS[7:8],
    "feed-forward in": LINEARS[8:9],
    "feed-forward out": LINEARS[9:],
}


@dataclass
class Recovery:
    """Energies of errors, summed over linears: of weights, and of outputs on held-out inputs (0 without
    calibration)."""

    weight: float = 0.0
    weight_before: float = 0.0
    weight_after: float = 0.0
    output: float = 0.0
    output_before: float = 0.0
    output_after: float = 0.0

    def __add__(self, other: "Recovery") -> "Recovery":
        return Recovery(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass
class Report:
    """What an adapter recovers, by linear name, over all blocks and experts built."""

    by_linear: dict[str, Recovery] = field(default_factory=dict)

    def add(self, name: str, recovery: Recovery) -> None:
        self.by_linear[name] = self.by_linear.get(name, Recovery()) + recovery

    @property
    def overall(self) -> Recovery:
        return sum(self.by_linear.values(), Recovery())

    def table(self) -> str:
        """Relative errors (Frobenius) without and with the adapter, per kind of linear and overall."""
        rows = [(kind, sum((self.by_linear[n] for n in names), Recovery())) for kind, names in KINDS.items()] + [
            ("all", self.overall)
        ]
        measured = self.overall.output > 0
        lines = [
            f"{'':<24}{'weight error':>26}" + (f"{'output error':>26}" if measured else ""),
            f"{'':<24}{'without':>9}{'with':>9}{'less':>8}"
            + (f"{'without':>9}{'with':>9}{'less':>8}" if measured else ""),
        ]
        for kind, r in rows:
            line = f"{kind:<24}{_columns(r.weight, r.weight_before, r.weight_after)}"
            lines.append(line + (_columns(r.output, r.output_before, r.output_after) if measured else ""))
        return "\n".join(lines)


def _columns(whole: float, before: float, after: float) -> str:
    without, with_it = (before / whole) ** 0.5, (after / whole) ** 0.5
    return f"{without:>9.2%}{with_it:>9.2%}{1 - with_it / without if without else 0.0:>8.1%}"


@torch.no_grad()
def build_expert(
    reader: ExpertReader,
    placement: Placement,
    *,
    rank: int,
    grid: Grid,
    samples: list[CalibrationSample],
    full: bool,
    report: Report,
    progress: Callable[[int, int], None],
) -> list[Lora]:
    """The adapter of one expert, in bf16 in host memory; what it recovers goes into `report`. `rank` fits every linear.

    Weighted by what the linears receive from `samples` when there are some: per channel, or by the whole second moment
    (`full`). Reads one block, takes the samples through it, solves its ten linears, and drops it. Raises UserError.
    """
    walk = Walk(reader, samples, placement, full=full) if samples else None
    out: list[Lora] = []
    for number in range(reader.blocks):
        progress(number, reader.blocks)
        state = reader.block(number)
        moments: dict[BlockLinear, Moment] = (
            walk.through(number, block_module(reader.config, state, placement)) if walk else {}
        )
        lora: Lora = {}
        for name in LINEARS:
            weight_NK = state.pop(f"{name}.weight").to(placement.device)
            moment = moment_of(moments, number, name)
            lora[name], recovery = correct(
                weight_NK, rank, grid=grid, moment=moment, key=f"{reader.expert} {number} {name}"
            )
            report.add(name, recovery)
        out.append(lora)
    progress(reader.blocks, reader.blocks)
    return out


def correct(
    weight_NK: torch.Tensor, rank: int, *, grid: Grid, moment: Moment | None, key: str
) -> tuple[tuple[torch.Tensor, torch.Tensor], Recovery]:
    """((A, B) in bf16 on the host, what it recovers) of one weight."""
    w_NK = weight_NK.float()
    residual_NK = w_NK - unpack_weight(pack(weight_NK, INT4, grid), INT4, torch.float32)
    a, b = best_correction(residual_NK, rank, moment=moment.mean if moment else None, key=key)
    a, b = a.to(torch.bfloat16), b.to(torch.bfloat16)
    left_NK = torch.addmm(residual_NK, b.float(), a.float(), alpha=-1)
    recovery = Recovery(_energy(w_NK), _energy(residual_NK), _energy(left_NK))
    if moment and moment.probe:
        x_KP = torch.cat(moment.probe).T
        recovery.output, recovery.output_before, recovery.output_after = (
            _energy(w_NK @ x_KP),
            _energy(residual_NK @ x_KP),
            _energy(left_NK @ x_KP),
        )
    return (a.cpu(), b.cpu()), recovery


def _energy(t: torch.Tensor) -> float:
    return float(t.square().sum(dtype=torch.float64))

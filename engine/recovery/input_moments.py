"""Second moments of what goes into each linear, gathered while the model runs over calibration clips.

The default keeps the mean square of each channel. The full matrix E[x x^T] weighs better and takes 4 K^2 bytes per
linear (100 MiB at K = 5120, 730 MiB at 13824), so it is meant for one block at a time. The model is run by
`engine.recovery.calibrate`.
"""

from dataclasses import dataclass, field

import torch

from engine.wan.block import LINEARS

# Linears that read the same tensor share one moment.
SAME_INPUT = {"attn1.to_k": "attn1.to_q", "attn1.to_v": "attn1.to_q", "attn2.to_v": "attn2.to_k"}
READERS = tuple(name for name in LINEARS if name not in SAME_INPUT)
PROBE_ROWS = 128  # kept of each held-out tensor

BlockLinear = tuple[int, str]  # (block, linear)


@dataclass
class Moment:
    """Inputs of one linear, K wide: their sum of squares (K,) or of products (K, K), and some held-out ones as they
    were."""

    total: torch.Tensor | None = None
    rows: int = 0
    probe: list[torch.Tensor] = field(default_factory=list)

    @property
    def mean(self) -> torch.Tensor | None:
        """E[x^2] (K,) or E[x x^T] (K, K); None when nothing was added."""
        return self.total / self.rows if self.total is not None else None

    def add(self, x: torch.Tensor, *, full: bool) -> None:
        x_MK = x.detach().reshape(-1, x.shape[-1]).float()
        total = x_MK.T @ x_MK if full else x_MK.square().sum(0)
        self.total = total if self.total is None else self.total.add_(total)
        self.rows += x_MK.shape[0]

    def hold_out(self, x: torch.Tensor) -> None:
        """Keep some rows to measure with; they do not weigh."""
        x_MK = x.detach().reshape(-1, x.shape[-1])
        self.probe.append(x_MK[:: -(-x_MK.shape[0] // PROBE_ROWS)].float().clone())


def moment_of(moments: dict[BlockLinear, Moment], block: int, name: str) -> Moment | None:
    """The moment of a linear, or of the one that reads the same tensor."""
    return moments.get((block, name)) or moments.get((block, SAME_INPUT.get(name, name)))

"""Whether all that trains gets a gradient: looked at once for each expert, size of clips and plan, in the attempt's
first steps of them. For each of these other code may be compiled, and a fault of it shows in no loss.

A norm of 0 over several steps is presets.diagnosis.gradients's to tell.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch

from presets.job.expert_schedule import Expert
from presets.planner.plan import Plan

LEAST_LOSS = 1e-12  # below it a gradient may be too small for the numbers that it is computed in

Sizes = frozenset[tuple[int, ...]]  # shapes of a step's micro-batches
Tensors = Mapping[str, torch.Tensor | None]
Group = TypeVar("Group", int, str)


class GradientCheck:
    """Of one attempt. What was seen to get a gradient is not looked at again, so that steps soon cost nothing."""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._unseen: dict[tuple[Expert, Sizes], set[str]] = {}

    def lost(
        self, parameters: Tensors, gradients: Tensors, of: tuple[Expert, Sizes], plan: Plan, loss: Callable[[], float]
    ) -> str:
        """The blocks in which nothing got a gradient though it should have, else the linears that got none in any
        block; "" where all is well. To be asked before the optimizer's step.

        `loss` is that of the clips which train the LoRA at all, and asked for only where there is something to look at.
        A gradient is owed where the other one of A and B is not all zero: A's waits for B's first step. A single linear
        of a single block may be at rest.
        """
        if plan != self._plan:
            self._plan, self._unseen = plan, {}
        unseen = self._unseen.setdefault(of, set(parameters))
        if not unseen or loss() <= LEAST_LOSS:
            return ""
        unseen -= _not_all_zero({name: gradients[name] for name in unseen})
        owed = {_other(name) for name in _not_all_zero({_other(name): parameters[_other(name)] for name in unseen})}
        blocks = _wholly_without(_block, parameters, unseen, owed)
        if blocks:
            return f"block{'s' if len(blocks) > 1 else ''} {_runs(blocks)}"
        linears = _wholly_without(_linear, parameters, unseen, owed)
        return f"{', '.join(linears)} of every block" if linears else ""


def _not_all_zero(tensors: Tensors) -> set[str]:
    """One look at the device for all. Exact, where a norm may come to 0 for very small numbers."""
    there = {name: tensor.detach() for name, tensor in tensors.items() if tensor is not None}
    if not there:
        return set()
    flags = torch.stack([tensor.any() for tensor in there.values()]).tolist()
    return set(itertools.compress(there, flags))


def _wholly_without(
    group: Callable[[str], Group], names: Iterable[str], unseen: set[str], owed: set[str]
) -> list[Group]:
    """The groups of parameters, all A or all B, of which none has had a gradient and some should have."""
    seen = {(group(name), _side(name)) for name in names if name not in unseen}
    return sorted({group(name) for name in owed if (group(name), _side(name)) not in seen})


def _block(name: str) -> int:
    return int(name.split(".")[1])


def _linear(name: str) -> str:
    """`blocks.3.attn1.to_q.lora_B.weight` -> `attn1.to_q`."""
    return name.split(".", 2)[2].partition(".lora_")[0]


def _side(name: str) -> str:
    return name.rpartition(".lora_")[2]


def _other(name: str) -> str:
    """A's name for B's, B's for A's."""
    start, _, side = name.rpartition(".lora_")
    return f"{start}.lora_{'A' if side[0] == 'B' else 'B'}{side[1:]}"


def _runs(numbers: list[int]) -> str:
    """0, 1, 2, 5 -> `0-2, 5`."""
    runs = [
        [number for _, number in run]
        for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    ]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)

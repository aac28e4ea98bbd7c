"""Passes that ranks share, in which memory runs out on one of them: the others wait for its tokens, so it gives zeros
for what is left of them. What all have at the end is worth nothing, and they have to be told so; but all are there, and
go on.

A pass exchanges as often on every rank (`engine.executor.block_executor`): in each block q, k, v and what the attention
gives, after the last block what that gives, and on the way back in each block that learns, or has one before it that
does, these four and a gradient, then three gradients.

B batch, t tokens of one rank, T all tokens, N all heads, n heads of one rank, K head width, C channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeVar

import torch

from engine.executor.block_executor import BlockExecutor
from engine.executor.token_split import Ask, TokenSplit
from engine.parallel.lost_clips import whole_or_lost
from engine.parallel.team import Team
from engine.system import fault_injection
from engine.system.device import memory_errors, release
from engine.system.pinned_memory import HostMemoryRefused

T = TypeVar("T")


class RanShort(torch.OutOfMemoryError):
    """Memory ran out on this rank; all ranks have come to the end of the passes."""


@dataclass(frozen=True)
class PassSize:
    """A pass through an expert: of so many clips, and back or not."""

    clips: int
    back: bool = False


def by_all(
    team: Team,
    what: Literal["clip", "held-out clip"],
    executor: BlockExecutor,
    split: TokenSplit,
    tokens: int,
    passes: Sequence[PassSize],
    make: Callable[[TokenSplit], T],
) -> T:
    """What `make` makes of these passes of clips of so many tokens, to which it is to give this split. Raises RanShort;
    and ClipLost, which ends all ranks, for whatever else goes wrong, or where there is no memory for zeros either."""
    short: RanShort | None = None
    with whole_or_lost(team, what):
        try:
            return _to_the_end(executor, split, tokens, passes, make)
        except RanShort as e:
            short = e
    assert short is not None
    raise short


def _to_the_end(
    executor: BlockExecutor,
    split: TokenSplit,
    tokens: int,
    passes: Sequence[PassSize],
    make: Callable[[TokenSplit], T],
) -> T:
    counted = _Counted(split.ask)
    try:
        with memory_errors():
            return make(replace(split, ask=counted))
    except (torch.OutOfMemoryError, HostMemoryRefused) as e:
        if counted.within:  # nobody knows what the others have of it
            raise
        short = str(e)
    # only now: what the passes held is let go with the error
    release(executor.device)
    for give in [give for size in passes for give in _exchanges(executor, split, tokens, size)][counted.done :]:
        give()
    raise RanShort(short)


class _Counted:
    """Counts the exchanges of all passes."""

    def __init__(self, ask: Ask) -> None:
        self._ask, self.done, self.within = ask, 0, False

    def __call__(self, collective: Callable[[], object]) -> None:
        fault_injection.at("shared-pass.exchange", self.done)
        self.within = True
        self._ask(collective)
        self.within = False
        self.done += 1


def _exchanges(
    executor: BlockExecutor, split: TokenSplit, tokens: int, size: PassSize
) -> list[Callable[[], torch.Tensor]]:
    """Those of a pass, with zeros of this rank's."""
    outer, share, B = executor.weights.outer, split.of(tokens), size.clips
    N, K, t = outer.config.num_attention_heads, outer.config.attention_head_dim, share.mine.stop - share.mine.start
    zeros = partial(torch.zeros, dtype=outer.patch_embedding.weight.dtype, device=executor.device)

    def to_heads() -> torch.Tensor:
        return share.to_heads(zeros(B, t, N, K))

    def to_tokens() -> torch.Tensor:
        return share.to_tokens(zeros(B, tokens, N // split.ranks, K))

    there = [to_heads, to_heads, to_heads, to_tokens] * executor.blocks
    lowest = next((i for i, lora in enumerate(executor.weights.lora) if lora), 0)
    back = [*[to_heads] * 5, *[to_tokens] * 3] * (executor.blocks - lowest)
    return [*there, lambda: share.gather(zeros(B, t, outer.proj_out.out_features)), *(back if size.back else [])]

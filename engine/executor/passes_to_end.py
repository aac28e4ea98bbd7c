"""Forward passes that ranks share, in which memory runs out on one of them: the others wait for its tokens, so it gives
zeros for what is left of the pass. What all have at its end is worth nothing, and they have to be told so; but all are
at its end, and go on.

A forward pass exchanges as often on every rank (`engine.executor.block_executor`): in each block q, k, v and what the
attention gives, and at its end what the last block gives.

B batch, t tokens of one rank, T all tokens, N all heads, n heads of one rank, K head width, C channels.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch

from engine.executor.block_executor import BlockExecutor
from engine.executor.token_split import Ask, TokenSplit
from engine.system import fault_injection
from engine.system.device import memory_errors, release
from engine.system.pinned_memory import HostMemoryRefused

T = TypeVar("T")


class RanShort(torch.OutOfMemoryError):
    """Memory ran out on this rank; all ranks have come to the end of the pass."""


def to_the_end(executor: BlockExecutor, split: TokenSplit, tokens: int, make: Callable[[TokenSplit], T]) -> T:
    """What `make` makes of one forward pass of a clip of so many tokens, which it is to give this split. Raises
    RanShort, and whatever else `make` raises: then the others wait in vain."""
    counted = _Counted(split.ask)
    try:
        with memory_errors():
            return make(replace(split, ask=counted))
    except (torch.OutOfMemoryError, HostMemoryRefused) as e:
        if counted.within:  # nobody knows what the others have of it
            raise
        short = str(e)
    # only now: what the pass held is let go with the error
    release(executor.device)
    for give in _exchanges(executor, split, tokens)[counted.done :]:
        give()
    raise RanShort(short)


class _Counted:
    """Counts the exchanges of a pass."""

    def __init__(self, ask: Ask) -> None:
        self._ask, self.done, self.within = ask, 0, False

    def __call__(self, collective: Callable[[], object]) -> None:
        fault_injection.at("shared-pass.exchange", self.done)
        self.within = True
        self._ask(collective)
        self.within = False
        self.done += 1


def _exchanges(executor: BlockExecutor, split: TokenSplit, tokens: int) -> list[Callable[[], torch.Tensor]]:
    """Those of a forward pass of one clip, with zeros of this rank's."""
    outer, share = executor.weights.outer, split.of(tokens)
    N, K, t = outer.config.num_attention_heads, outer.config.attention_head_dim, share.mine.stop - share.mine.start
    zeros = partial(torch.zeros, dtype=outer.patch_embedding.weight.dtype, device=executor.device)
    block: list[Callable[[], torch.Tensor]] = [lambda: share.to_heads(zeros(1, t, N, K))] * 3
    block.append(lambda: share.to_tokens(zeros(1, tokens, N // split.ranks, K)))
    return [*block * executor.blocks, lambda: share.gather(zeros(1, t, outer.proj_out.out_features))]

"""One clip over several GPUs, by Ulysses (Jacobs et al. 2023): each holds a run of its tokens, and all tokens of some
heads while self-attention runs. Between the two lies one all-to-all, which moves numbers and rounds none.

Every rank computes the loss of the whole prediction, and takes the gradient of its own tokens. Who the ranks are is
engine.parallel.team's.

B batch, t tokens of one rank, T all tokens, N all heads, n heads of one rank, K head width, C channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

Ask = Callable[[Callable[[], object]], None]  # runs a collective, and finds out who has died where it breaks


def run_lengths(tokens: int, ranks: int) -> list[int]:
    """How many tokens each rank has: as even as it goes, the first ones have one more."""
    return [tokens // ranks + (rank < tokens % ranks) for rank in range(ranks)]


@dataclass(frozen=True)
class TokenSplit:
    """One rank's view of those that share clips. All of them make each call at the same place of a step."""

    group: Any
    place: int
    ranks: int
    ask: Ask

    def of(self, tokens: int) -> "Share":
        """For passes of so many tokens."""
        return Share(self, tokens)


class Share:
    """What a rank has of clips of so many tokens."""

    def __init__(self, split: TokenSplit, tokens: int) -> None:
        self._split, self._lengths = split, run_lengths(tokens, split.ranks)
        self._own = self._lengths[split.place]
        start = sum(self._lengths[: split.place])
        self.mine = slice(start, start + self._own)
        self.most = self._lengths[0]  # which no rank has more of

    def to_heads(self, x_BtNK: torch.Tensor) -> torch.Tensor:
        """This rank's tokens of all heads -> (B, T, n, K), all tokens of this rank's heads."""
        B, t, N, K = x_BtNK.shape
        ranks, n = self._split.ranks, N // self._split.ranks
        assert n * ranks == N and t == self._own
        sent = x_BtNK.unflatten(2, (ranks, n)).movedim(2, 0).contiguous()
        each = B * n * K
        got = self._all_to_all(sent, [t * each] * ranks, [length * each for length in self._lengths])
        parts = [part.view(B, length, n, K) for part, length in zip(got, self._lengths, strict=True)]
        return torch.cat(parts, dim=1)

    def to_tokens(self, x_BTnK: torch.Tensor) -> torch.Tensor:
        """All tokens of this rank's heads -> (B, t, N, K), this rank's tokens of all heads."""
        B, _, n, K = x_BTnK.shape
        t, each = self._own, B * n * K
        sent = torch.cat([part.flatten() for part in x_BTnK.split(self._lengths, dim=1)])
        got = self._all_to_all(sent, [length * each for length in self._lengths], [t * each] * self._split.ranks)
        return torch.cat([part.view(B, t, n, K) for part in got], dim=2)

    def whole(self, x_BtC: torch.Tensor) -> torch.Tensor:
        """The tokens of all ranks, (B, T, C). Its gradient is that of this rank's tokens alone."""
        whole: torch.Tensor = _Whole.apply(x_BtC, self)
        return whole

    def gather(self, x_BtC: torch.Tensor) -> torch.Tensor:
        B, t, C = x_BtC.shape
        sent = x_BtC.new_zeros(B, self.most, C)
        sent[:, :t] = x_BtC
        got = [torch.empty_like(sent) for _ in self._lengths]
        self._split.ask(lambda: dist.all_gather(got, sent, group=self._split.group))
        return torch.cat([part[:, :length] for part, length in zip(got, self._lengths, strict=True)], dim=1)

    def _all_to_all(self, sent: torch.Tensor, gives: list[int], takes: list[int]) -> tuple[torch.Tensor, ...]:
        """What each rank has sent here; `gives` and `takes` count numbers."""
        got = sent.new_empty(sum(takes))
        self._split.ask(lambda: dist.all_to_all_single(got, sent.view(-1), takes, gives, group=self._split.group))
        return got.split(takes)


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BtC: torch.Tensor, share: Share) -> torch.Tensor:
        ctx.mine = share.mine
        return share.gather(x_BtC)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return grad[:, ctx.mine].contiguous(), None

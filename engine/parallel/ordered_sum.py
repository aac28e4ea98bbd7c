"""The gradients of a step whose micro-batches are on several ranks, added in the order in which one process adds them.

Autograd adds to a parameter's gradient each time that the parameter was used: by every loss term, and by every chunk of
tokens. Addition rounds, so what a micro-batch gives is kept apart by use and not added up before it is its turn: on one
GPU nothing of it stands between the micro-batches.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

PIECE = 2**24  # numbers that a rank sends at once: 64 MiB in fp32, of each rank

Uses = dict[str, list[torch.Tensor]]  # parameter -> what each use of it gave, in order
Gather = Callable[[torch.Tensor], list[torch.Tensor]]


class OrderedSum:
    """Adds up the gradients of one step; made anew for each."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], gather: Gather) -> None:
        """`gather` gives the tensors of all ranks that share the step, in their order."""
        self._parameters, self._gather = parameters, gather
        self._sums: dict[str, torch.Tensor] = {}

    @contextmanager
    def kept_apart(self) -> Iterator[Uses]:
        """Inside, gradients go to what this yields and not to the parameters."""
        uses: Uses = {name: [] for name in self._parameters}

        def take(name: str) -> Callable[[torch.Tensor], None]:
            def hook(parameter: torch.Tensor) -> None:
                assert parameter.grad is not None
                uses[name].append(parameter.grad)
                parameter.grad = None

            return hook

        hooks = [p.register_post_accumulate_grad_hook(take(name)) for name, p in self._parameters.items()]
        try:
            yield uses
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def make_room(self, counts: list[list[int]]) -> None:
        """Take the memory that `add` is about to need and let it go again: torch then has it at hand. If there is none,
        it shows while nothing is sent yet, and the others can be told. Raises torch.OutOfMemoryError."""
        names, most = list(self._parameters), 0
        for piece in _pieces(names, self._parameters, counts):
            most = max(most, *self._sizes(names, piece, counts))
        like = next(iter(self._parameters.values()))
        held = [like.new_empty(most) for _ in range(len(counts) + 2)]  # sent, what fills it up, and what comes
        held += [
            torch.empty_like(self._parameters[name])
            for i, name in enumerate(names)
            if name not in self._sums and any(of_rank[i] for of_rank in counts)
        ]
        del held

    def _sizes(self, names: list[str], piece: list[int], counts: list[list[int]]) -> list[int]:
        """How many numbers each rank sends of a piece."""
        return [sum(of_rank[i] * self._parameters[names[i]].numel() for i in piece) for of_rank in counts]

    @torch.no_grad()
    def add(self, mine: Uses, counts: list[list[int]]) -> None:
        """The micro-batches of all ranks, one each: `counts` says how many uses of each parameter every rank has, as
        `count` gives it. All ranks call it."""
        names = list(self._parameters)
        for piece in _pieces(names, self._parameters, counts):
            sizes = self._sizes(names, piece, counts)
            if not any(sizes):
                continue
            flat = [use.flatten() for i in piece for use in mine[names[i]]]
            for i in piece:
                mine[names[i]].clear()
            like = self._parameters[names[piece[0]]]
            sent = torch.cat([*flat, like.new_zeros(max(sizes) - sum(t.numel() for t in flat))])
            del flat
            for of_rank, size, numbers in zip(counts, sizes, self._gather(sent), strict=True):
                uses = [(names[i], use) for i in piece for use in range(of_rank[i])]
                parts = numbers[:size].split([self._parameters[name].numel() for name, _ in uses])
                for turn in range(max(of_rank[i] for i in piece)):
                    self._add({name: part for (name, use), part in zip(uses, parts, strict=True) if use == turn})

    def _add(self, uses: dict[str, torch.Tensor]) -> None:
        """One use of each of these parameters, by few kernels: to launch one each would take longer than they run."""
        views = {name: use.view_as(self._parameters[name]) for name, use in uses.items()}
        known = [name for name in uses if name in self._sums]
        if known:
            torch._foreach_add_([self._sums[name] for name in known], [views[name] for name in known])
        # not 0 + it: that would lose the sign of a zero
        new = {name: torch.empty_like(use) for name, use in views.items() if name not in self._sums}
        if new:
            torch._foreach_copy_(list(new.values()), [views[name] for name in new])
            self._sums |= new

    def finish(self) -> None:
        """The sums are the parameters' gradients from now on."""
        for name, total in self._sums.items():
            self._parameters[name].grad = total
        self._sums = {}


def count(uses: Uses) -> list[int]:
    """How many uses each parameter had."""
    return [len(of_one) for of_one in uses.values()]


def _pieces(
    names: list[str], parameters: Mapping[str, torch.nn.Parameter], counts: list[list[int]]
) -> Iterator[list[int]]:
    """The numbers of the parameters, in order, in groups that no rank sends more than PIECE of, or that are of one."""
    piece: list[int] = []
    size = 0
    for i, name in enumerate(names):
        most = max(of_rank[i] for of_rank in counts) * parameters[name].numel()
        if piece and size + most > PIECE:
            yield piece
            piece, size = [], 0
        piece.append(i)
        size += most
    if piece:
        yield piece

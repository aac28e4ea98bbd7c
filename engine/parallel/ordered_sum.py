"""The gradients of a step whose micro-batches are on several ranks, added in the order in which one process adds them.

Autograd adds to a parameter's gradient each time that the parameter was used: by every loss term, and by every chunk of
tokens. Addition rounds, so what a micro-batch gives is kept apart by use and not added up before it is its turn: on one
GPU nothing of it stands between the micro-batches.

The way back begins at the last block, and what is done is sent while the rest is computed: on a GPU by a stream of its
own, so that nothing waits for the others before all is sent. How often each rank uses each parameter is known before
(`engine.executor.block_executor`), so all send as much, in the same pieces, whatever befalls them meanwhile.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache

import torch

from engine.system import fault_injection

PIECE = 2**22  # numbers that a rank sends at once: 16 MiB in fp32, of each rank

Gather = Callable[[torch.Tensor], list[torch.Tensor]]
Counts = Sequence[Sequence[int]]  # of each rank: how often it uses each parameter


class OrderedSum:
    """Adds up the gradients of one step; made anew for each."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], gather: Gather, place: int) -> None:
        """`gather` gives the tensors of all ranks that share the step, in their order. `place`: this one's in it."""
        self._parameters, self._gather, self._place = list(parameters.values()), gather, place
        self._names = list(parameters)
        self._stream = _stream_beside(self._parameters[0].device)
        self._sums: dict[int, torch.Tensor] = {}
        self._new: set[int] = set()  # of these: nothing was added to them yet
        self._counts: Counts = []
        self._uses: list[list[torch.Tensor]] = []  # of each parameter, what each use of it gave, in order
        self._left: deque[list[int]] = deque()  # pieces that are not sent
        self._sent = 0  # pieces
        self._broken = ""  # why nobody knows how much the others have

    @contextmanager
    def kept_apart(self, counts: Counts, *, ahead: bool) -> Iterator[None]:
        """Inside, gradients go here and not to the parameters: of one micro-batch of each rank. `ahead`: whatever is
        complete is sent at once. All ranks call it with the same, and `send_rest` inside."""
        self._counts, due = counts, list(counts[self._place])  # uses that are still to come
        assert all(len(of_rank) == len(self._parameters) for of_rank in counts)
        self._uses = [[] for _ in due]
        # the last block is done first
        self._left = deque(_pieces(list(reversed(range(len(due)))), self._parameters, counts))

        def take(i: int) -> Callable[[torch.Tensor], None]:
            def hook(parameter: torch.Tensor) -> None:
                assert parameter.grad is not None
                self._uses[i].append(parameter.grad)
                parameter.grad = None
                due[i] -= 1
                assert due[i] >= 0, f"{self._names[i]} is used more than {counts[self._place][i]} times"
                # of a block, the first linears are done last
                while ahead and self._left and not any(due[j] for j in reversed(self._left[0])):
                    self._send()

            return hook

        hooks = [p.register_post_accumulate_grad_hook(take(i)) for i, p in enumerate(self._parameters)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def send_rest(self, *, void: bool = False) -> None:
        """Send what is not sent yet, and have the device wait for all of it. Where a use never came, zeros are sent for
        it. Others wait for as much from each rank, so one that has failed also calls it, outside the handler, as
        `void`: zeros for all. Raises torch.OutOfMemoryError, after which it may be called again, and RuntimeError where
        nobody knows how much the others have."""
        if self._broken:
            raise RuntimeError(self._broken)
        if void:
            self._uses = [[] for _ in self._uses]
        while self._left:
            self._send()
        if self._stream:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    @torch.no_grad()
    def _send(self) -> None:
        """The next piece, of all ranks: what they use of it is added."""
        fault_injection.at("gradients.send", self._sent)
        piece, mine = self._left[0], self._counts[self._place]
        sizes = [sum(of_rank[i] * self._parameters[i].numel() for i in piece) for of_rank in self._counts]
        if not any(sizes):
            self._left.popleft()
            return
        like, flat = self._parameters[piece[0]], []
        for i in piece:
            flat += [use.flatten() for use in self._uses[i]]
            if missing := mine[i] - len(self._uses[i]):
                flat.append(like.new_zeros(missing * self._parameters[i].numel()))
        sent = torch.cat([*flat, like.new_zeros(max(sizes) - sizes[self._place])])
        del flat
        for i in piece:
            self._uses[i].clear()
            if i not in self._sums and any(of_rank[i] for of_rank in self._counts):
                self._sums[i] = torch.empty_like(self._parameters[i])
                self._new.add(i)
        if self._stream:  # only it waits for the other ranks
            self._stream.wait_stream(torch.cuda.current_stream(sent.device))
            sent.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            received = self._gathered(sent)
            self._left.popleft()  # from now on the others have it, whatever befalls this one
            self._sent += 1
            for of_rank, size, numbers in zip(self._counts, sizes, received, strict=True):
                uses = [(i, use) for i in piece for use in range(of_rank[i])]
                parts = numbers[:size].split([self._parameters[i].numel() for i, _ in uses])
                for turn in range(max(of_rank[i] for i in piece)):
                    self._add({i: part for (i, use), part in zip(uses, parts, strict=True) if use == turn})

    def _gathered(self, sent: torch.Tensor) -> list[torch.Tensor]:
        try:
            return self._gather(sent)
        except torch.OutOfMemoryError:  # torch's own, before anything is sent; what NCCL says of memory is none
            raise
        except RuntimeError as e:
            self._broken = str(e)
            raise

    def _add(self, uses: dict[int, torch.Tensor]) -> None:
        """One use of each of these parameters, by few kernels: to launch one each would take longer than they run."""
        views = {i: use.view_as(self._parameters[i]) for i, use in uses.items()}
        known = [i for i in uses if i not in self._new]
        if known:
            torch._foreach_add_([self._sums[i] for i in known], [views[i] for i in known])
        # not 0 + it: that would lose the sign of a zero
        new = [i for i in uses if i in self._new]
        if new:
            torch._foreach_copy_([self._sums[i] for i in new], [views[i] for i in new])
            self._new.difference_update(new)

    def finish(self) -> None:
        """The sums are the parameters' gradients from now on."""
        for i, total in self._sums.items():
            self._parameters[i].grad = total
        self._sums = {}


@cache
def _stream_beside(device: torch.device) -> "torch.cuda.Stream | None":
    """One for the whole process: torch keeps memory for each."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None


def _pieces(order: list[int], parameters: Sequence[torch.Tensor], counts: Counts) -> Iterator[list[int]]:
    """The numbers of the parameters, in order, in groups that no rank sends more than PIECE of, or that are of one."""
    piece: list[int] = []
    size = 0
    for i in order:
        most = max(of_rank[i] for of_rank in counts) * parameters[i].numel()
        if piece and size + most > PIECE:
            yield piece
            piece, size = [], 0
        piece.append(i)
        size += most
    if piece:
        yield piece

"""A ring of device buffers that block weights pass through, filled ahead of the visits by a copy stream.

Which buffer serves which visit is decided beforehand by a pure function (`plan_loads`), so that a block that still lies
in one (the last ones of the forward are the first of the backward) is not copied again. What activations need of the
host is `engine.executor.activation_offload`'s.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Key = tuple[str, int]  # (expert, block)


@dataclass(frozen=True)
class Visit:
    """One use of one block: in which buffer it lies, and whether it must be copied there first."""

    key: Key
    buffer: int
    load: bool
    after: int  # the earlier visit whose end frees the buffer; -1 when free from the start


def plan_loads(keys: list[Key], held: list[Key | None]) -> list[Visit]:
    """Assign a buffer to each visit in order. `held` is what the buffers hold now.

    When a block is in no buffer, it replaces the one whose next use is farthest away (Belady's rule, optimal since the
    order is known).
    """
    content, last_user = list(held), [-1] * len(held)
    visits: list[Visit] = []
    for i, key in enumerate(keys):
        if key in content:
            buffer, load = content.index(key), False
        else:

            def next_use(buffer: int, now: int = i) -> int:
                later = [j for j in range(now + 1, len(keys)) if keys[j] == content[buffer]]
                return -1 - last_user[buffer] + 2 * len(keys) if not later else later[0]

            buffer, load = max(range(len(content)), key=next_use), True
        visits.append(Visit(key, buffer, load, last_user[buffer]))
        content[buffer], last_user[buffer] = key, i
    return visits


class WeightRing:
    """Device buffers of `size` bytes, each for one block. One pass at a time: `begin`, then `take` and `release` each
    visit in order.

    `cuda` is torch.cuda, or what stands in for it in tests; without one (on the CPU) copies are made at once.
    """

    def __init__(self, size: int, count: int, device: torch.device, cuda: Any = None) -> None:
        self.device = device
        self.buffers = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(count)]
        self.held: list[Key | None] = [None] * count
        self._cuda = cuda
        self.stream: Any = cuda.Stream(device) if cuda else None
        self._ready: list[Any] = [cuda.Event() for _ in range(count)] if cuda else []
        self._free: list[Any] = [cuda.Event() for _ in range(count)] if cuda else []

    def begin(self, keys: list[Key], pieces: Callable[[Key], tuple[torch.Tensor, ...]]) -> None:
        """Start a pass over these blocks; the first copies start now. `pieces` gives the host buffers of one, and may
        wait for them, or raise: then nothing of it is written."""
        self._visits, self._pieces, self._next = plan_loads(keys, self.held), pieces, 0
        if self._cuda:
            for event in self._free:  # everything queued so far may still read the buffers
                event.record()
        self._issue(done=-1)

    def _issue(self, done: int) -> None:
        """Queue every copy, in order, whose buffer is free once visit `done` has been queued."""
        while self._next < len(self._visits) and self._visits[self._next].after <= done:
            visit = self._visits[self._next]
            if visit.load:
                self._copy(visit)
                self.held[visit.buffer] = visit.key
            self._next += 1

    def _copy(self, visit: Visit) -> None:
        if not self._cuda:
            self._write(visit)
            return
        with self._cuda.stream(self.stream):
            self.stream.wait_event(self._free[visit.buffer])
            self._write(visit)
            self._ready[visit.buffer].record(self.stream)

    def _write(self, visit: Visit) -> None:
        offset = 0
        for piece in self._pieces(visit.key):
            self.buffers[visit.buffer][offset : offset + piece.numel()].copy_(piece, non_blocking=True)
            offset += piece.numel()

    def take(self, visit: int) -> torch.Tensor:
        """The buffer of a visit; the current stream waits for its copy."""
        assert visit < self._next, "a visit was taken before its copy could be queued"
        buffer = self._visits[visit].buffer
        if self._cuda and self._visits[visit].load:
            self._cuda.current_stream(self.device).wait_event(self._ready[buffer])
        return self.buffers[buffer]

    def release(self, visit: int) -> None:
        """The kernels of a visit are queued: its buffer may be written once they have run."""
        if self._cuda:
            self._free[self._visits[visit].buffer].record()
        self._issue(done=visit)

"""Blocks that threads read while something else is done: the first can be computed with before the last is there."""

import atexit
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future, wait

import torch

Read = Callable[[int], torch.Tensor]  # number of a block -> its buffer
SAID_SECONDS = 0.5  # how often one who waits says so
END_SECONDS = 10.0  # how long the end of the process waits for a block that is being read


class ReadBehind(Sequence[torch.Tensor]):
    """The buffers of an expert's blocks, from the first to the last. Who asks for one that is not there waits for it.

    `waiting` is called with its number meanwhile, and may raise. Where a block cannot be read, `instead` is given the
    error and makes all of them in another way, or raises; it is called by who asks, and again where it has raised.
    """

    def __init__(
        self,
        count: int,
        read: Read,
        *,
        waiting: Callable[[int], None],
        instead: Callable[[Exception], Sequence[torch.Tensor]],
    ) -> None:
        stop = threading.Event()

        def wanted(block: int) -> torch.Tensor:  # knows nothing of the sequence: nobody may want it any more
            if stop.is_set():
                raise CancelledError
            return read(block)

        self._futures: list[Future[torch.Tensor]] = [Future() for _ in range(count)]
        self._count, self._waiting, self._make_instead = count, waiting, instead
        self.tasks = [(future, wanted, block) for block, future in enumerate(self._futures)]
        self._failed: Exception | None = None
        self._others: Sequence[torch.Tensor] | None = None
        self.stop = weakref.finalize(self, stop.set)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, block: int) -> torch.Tensor:  # type: ignore[override]  # nobody asks for a slice
        if self._others is None and self._failed is None:
            future = self._futures[block]
            while not wait([future], SAID_SECONDS).done:
                self._waiting(block)
            error = future.exception()
            if error is None:
                return future.result()
            if not isinstance(error, Exception):
                raise error
            self._failed = error.with_traceback(None)  # whose frames would hold the block
        if self._others is None:
            assert self._failed is not None
            self.stop()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()  # what was read is let go, and copies of it may be under way
            self._futures.clear()
            self._others = self._make_instead(self._failed)
        return self._others[block]


def read_in_turn(sequences: Iterable[ReadBehind], threads: int) -> list[threading.Thread]:
    """Start so many threads, which read one sequence after the other. None of them keeps the process from ending for
    longer than it takes to read a block."""
    tasks: deque[tuple[Future[torch.Tensor], Read, int]] = deque()
    for blocks in sequences:
        tasks.extend(blocks.tasks)
        blocks.tasks = []

    def work() -> None:
        while True:
            try:
                future, read, block = tasks.popleft()
            except IndexError:
                return
            try:
                future.set_result(read(block))
            except BaseException as e:
                future.set_exception(e)
            del future

    started = [threading.Thread(target=work, name=f"cache-{n}", daemon=True) for n in range(threads)]
    for thread in started:
        thread.start()

    def end() -> None:  # before Python takes a thread's lock away, which ends a process in the midst of torch's code
        tasks.clear()
        for thread in started:
            thread.join(END_SECONDS)

    atexit.register(end)
    return started

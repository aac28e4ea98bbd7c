"""A stand-in for torch.cuda that proves an order of copies and kernels, whatever the card's timing.

Streams and events keep vector clocks instead of running anything; every operator that runs meanwhile (on the CPU, at
once) is seen by a dispatch mode as a kernel of the current stream, with the memory it reads and writes. Two accesses to
the same memory, one of them a write, must be ordered by events: then no interleaving of the streams, however one of
them is delayed or runs ahead, gives another result than the one seen here. Freed memory counts as written by the stream
that it was made on, since CUDA's caching allocator hands it out again there at once.
"""

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Clock = dict[int, int]  # stream -> how many of its operations are known to be over


def where() -> str:
    """The engine's function that called."""
    frame = sys._getframe(1)
    while not frame.f_code.co_filename.endswith(
        ("engine/executor/weight_ring.py", "engine/executor/activation_offload.py", "engine/executor/block_executor.py")
    ):
        assert frame.f_back is not None
        frame = frame.f_back
    return frame.f_code.co_qualname


@dataclass
class Event:
    cuda: "FakeCuda"
    clock: Clock = field(default_factory=dict)

    def record(self, stream: "Stream | None" = None) -> None:
        self.clock = dict((stream or self.cuda.current).clock)


@dataclass
class Stream:
    cuda: "FakeCuda"
    number: int
    clock: Clock = field(default_factory=dict)

    def wait_event(self, event: Event) -> None:
        self.cuda.waits.add(where())
        if where() != self.cuda.broken:
            for stream, time in event.clock.items():
                self.clock[stream] = max(self.clock.get(stream, 0), time)

    def wait_stream(self, other: "Stream") -> None:
        event = Event(self.cuda)
        event.record(other)
        self.wait_event(event)


class FakeCuda:
    """What the engine takes from torch.cuda. Waits of the function named `broken` are left out."""

    def __init__(self, broken: str = "") -> None:
        self.broken, self.waits, self.count = broken, set[str](), 0
        self.current = self.Stream()

    def Stream(self, device: Any = None) -> Stream:
        self.count += 1
        return Stream(self, self.count)

    def Event(self) -> Event:
        return Event(self)

    def current_stream(self, device: Any = None) -> Stream:
        return self.current

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before


@dataclass
class _Memory:
    home: Stream
    write: tuple[int, int] = (0, 0)  # (stream, time)
    reads: Clock = field(default_factory=dict)  # the last of each stream


class Watch(TorchDispatchMode):
    """Inside, every operator is a kernel of the current stream; `races` says which accesses nothing orders."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()
        self.cuda, self.races, self.kernels = cuda, list[str](), 0
        self._memory: dict[int, _Memory] = {}

    def _of(self, tensor: torch.Tensor) -> _Memory:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._memory:
            self._memory[storage._cdata] = _Memory(self.cuda.current)
            weakref.finalize(storage, self._free, storage._cdata)
        return self._memory[storage._cdata]

    def _free(self, key: int) -> None:
        memory = self._memory.pop(key)
        self._write(memory, memory.home, "free")

    def _read(self, memory: _Memory, stream: Stream, name: str) -> None:
        if memory.write[1] > stream.clock.get(memory.write[0], 0):
            self.races.append(
                f"{name} on stream {stream.number} reads what stream {memory.write[0]} may not have written yet"
            )
        memory.reads[stream.number] = stream.clock[stream.number]

    def _write(self, memory: _Memory, stream: Stream, name: str) -> None:
        for other, time in [memory.write, *memory.reads.items()]:
            if time > stream.clock.get(other, 0):
                self.races.append(f"{name} on stream {stream.number} writes what stream {other} may still use")
        memory.write, memory.reads = (stream.number, stream.clock.get(stream.number, 0)), {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        stream = self.cuda.current
        stream.clock[stream.number] = stream.clock.get(stream.number, 0) + 1
        self.kernels += 1
        out = func(*args, **(kwargs or {}))
        if func._schema.name in VIEWS or func.is_view:
            for t in tree_leaves(out):
                if isinstance(t, torch.Tensor):
                    self._of(t)
            return out
        name = func._schema.name
        given = [
            *zip(func._schema.arguments, args, strict=False),
            *((a, (kwargs or {})[a.name]) for a in func._schema.arguments if a.name in (kwargs or {})),
        ]
        for argument, value in given:
            written = argument.alias_info is not None and argument.alias_info.is_write
            for t in tree_leaves(value):
                if isinstance(t, torch.Tensor):
                    (self._write if written else self._read)(self._of(t), stream, name)
        if not func._schema.is_mutable:
            for t in tree_leaves(out):
                if isinstance(t, torch.Tensor):
                    self._write(self._of(t), stream, name)
        return out


VIEWS = {"aten::detach", "aten::_unsafe_view"}

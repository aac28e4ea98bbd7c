"""Where a step's time goes, by part, without stopping the GPU to ask."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Times named parts of one step. On CUDA the marks are events in the stream, read once the step is over."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, float | torch.cuda.Event, float | torch.cuda.Event]] = []
        self._began = time.perf_counter()
        self.current = ""  # the part under way, also after an error in it

    def _mark(self) -> "float | torch.cuda.Event":
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.current, start = name, self._mark()
        yield
        self._marks.append((name, start, self._mark()))

    def seconds(self) -> dict[str, float]:
        """{part: seconds, ..., "total": wall seconds since this stopwatch was made}. Waits for the GPU."""
        if self._cuda:
            torch.cuda.synchronize()
        out: dict[str, float] = {}
        for name, start, end in self._marks:
            if isinstance(start, float):
                assert isinstance(end, float)
                spent = end - start
            else:
                assert not isinstance(end, float)
                spent = start.elapsed_time(end) / 1000
            out[name] = out.get(name, 0.0) + spent
        out["total"] = time.perf_counter() - self._began
        return {name: round(value, 6) for name, value in out.items()}


def mean_seconds(run: Callable[[], object], repeats: int = 5) -> float:
    """Of one call on the GPU, after one that is not counted."""
    run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats

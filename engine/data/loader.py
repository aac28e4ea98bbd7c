"""Batches ready before the step wants them: clips are decoded ahead in worker processes, into shared memory.

Workers are plain processes of our own (`engine.data.decode_worker`) and not multiprocessing's: they never import the
trainer's main module, share one anonymous memory file that no crash can leave behind (and that containers with a small
/dev/shm do not limit), and end by themselves when the trainer ends. What a batch holds depends on its index alone,
never on the workers.
"""

import math
import mmap
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, wait
from contextlib import suppress
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.data.decode_worker import DecodeAnswer, Task, read_message, write_message
from engine.data.masks import Grid, decode_masked
from engine.data.sampler import BatchSampler, SampleDraw
from presets.clips.geometry import Bucket
from presets.errors import UserError
from presets.machine.limits import cores

MOST_THREADS = 4  # per worker; a decoder gains little beyond


@dataclass(frozen=True)
class Batch:
    """One micro-batch of a single bucket."""

    draws: list[SampleDraw]
    # (batch, frames, height, width, 3), RGB; the caller's own copy. Of draws whose pixels are not needed: anything
    frames: NDArray[np.uint8]
    # what each latent counts in the loss: (batch, latent frames, height, width); None when all of them count in full
    masks: Grid | None = None

    @property
    def bucket(self) -> Bucket:
        return self.draws[0].item.bucket

    @property
    def ids(self) -> list[str]:
        return [d.item.id for d in self.draws]

    @property
    def captions(self) -> list[str]:
        """Resolved captions; "" where it was dropped."""
        return [d.caption for d in self.draws]

    @property
    def weight(self) -> float:
        """Strength of the LoRA; the same for all (see BatchSampler)."""
        return self.draws[0].item.weight


def decode_here(draws: list[SampleDraw], needless: Callable[[SampleDraw], bool] | None = None) -> Batch:
    """A batch of these draws, decoded in this process. Raises UserError naming the clip that cannot be."""
    frames, masks = np.empty(_shape(draws), np.uint8), _no_masks(draws)
    threads = min(MOST_THREADS, cores())
    for i, draw in enumerate(draws):
        unseen = needless is not None and needless(draw)
        if draw.item.mask is not None or not unseen:
            out, grid = None if unseen else frames[i], None if masks is None else masks[i]
            decode_masked(draw.request, out, draw.item.mask, grid, threads=threads)
    return Batch(draws, frames, masks)


class Loader:
    """Gives the batches of `sampler`, by index. Any index may be asked at any time; asking in order is fast.

    `workers` processes decode up to `ahead` batches ahead; 0 decodes in this process, when asked. Draws that are
    `needless` are not decoded. `log` hears, in the caller's thread, of a worker that died and a clip tried again.
    Close it when done; it is a context manager.
    """

    def __init__(
        self,
        sampler: BatchSampler,
        workers: int,
        ahead: int = 4,
        *,
        log: Callable[[str], None],
        needless: Callable[[SampleDraw], bool] | None = None,
        following: Callable[[int], int] = lambda index: index + 1,
    ) -> None:
        """`following`: the batch that is asked for after a batch."""
        assert workers >= 0 and ahead >= 0
        self.sampler, self._ahead, self._log, self._needless = sampler, ahead, log, needless or (lambda draw: False)
        self._following = following
        self._pending: dict[int, _Pending] = {}
        self._workers: list[_Worker] = []
        self._closed = False
        if workers == 0:
            return
        largest = max(_bytes(item.bucket) + _grid_bytes(item.bucket) for item in sampler.items)
        self._slot_size = -(-largest * sampler.batch_size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._free = list(range(ahead + 1))
        fd = os.memfd_create("wanlora-frames")
        os.ftruncate(fd, self._slot_size * (ahead + 1))  # pages are taken only once they are written to
        self._memory = mmap.mmap(fd, 0)
        self._memory_fd = fd
        self._tasks: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        threads = max(1, min(MOST_THREADS, cores() // workers))
        self._workers = [_Worker(self._tasks, fd, threads) for _ in range(workers)]

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that are alive."""
        return [pid for w in self._workers if (pid := w.pid)]

    def prefetch(self, index: int) -> None:
        """Begin to decode batch `index` and the ones behind it; returns at once."""
        if not self._workers:
            return
        window = [index]
        while len(window) <= self._ahead:
            window.append(self._following(window[-1]))
        for other in [i for i in self._pending if i not in window]:
            self._release(self._pending.pop(other))
        for i in window:
            if i not in self._pending:
                self._pending[i] = self._submit(self.sampler.batch(i))

    def batch(self, index: int) -> Batch:
        """Batch `index`; waits until it is decoded. Raises UserError naming the clip that cannot be."""
        assert not self._closed
        if not self._workers:
            return decode_here(self.sampler.batch(index), self._needless)
        self.prefetch(index)
        pending = self._pending[index]
        try:
            notes = [note for future in pending.futures for note in future.result()]
        except Exception:  # asked again, it is decoded again; a KeyboardInterrupt leaves it under way
            self._release(self._pending.pop(index))
            raise
        for note in notes:
            self._log(note)
        at, shape = pending.slot * self._slot_size, _shape(pending.draws)
        frames = np.ndarray(shape, np.uint8, self._memory, at).copy()
        masks = _no_masks(pending.draws)
        if masks is not None:
            decoded = np.ndarray(masks.shape, np.float32, self._memory, at + frames.nbytes)
            for i, draw in enumerate(pending.draws):
                if draw.item.mask is not None:
                    masks[i] = decoded[i]
        self._release(self._pending.pop(index))
        return Batch(pending.draws, frames, masks)

    def close(self) -> None:
        """End all workers. The loader gives no batch afterwards; closing twice is fine."""
        workers, self._workers, self._closed = self._workers, [], True
        if not workers:
            return
        for pending in self._pending.values():
            for future in pending.futures:
                future.cancel()
        self._pending.clear()
        for worker in workers:
            worker.stop()
            self._tasks.put(None)
        for worker in workers:
            worker.join()
        self._memory.close()
        os.close(self._memory_fd)

    def _submit(self, draws: list[SampleDraw]) -> "_Pending":
        """A slot holds the frames of a batch one behind the other, and then its masks."""
        slot, bucket = self._free.pop(), draws[0].item.bucket
        at = slot * self._slot_size
        jobs = [
            _Job(
                Task(
                    draw.request,
                    None if self._needless(draw) else at + i * _bytes(bucket),
                    draw.item.mask,
                    at + len(draws) * _bytes(bucket) + i * _grid_bytes(bucket),
                ),
                Future(),
            )
            for i, draw in enumerate(draws)
            if draw.item.mask is not None or not self._needless(draw)
        ]
        for job in jobs:
            self._tasks.put(job)
        return _Pending(draws, slot, [job.future for job in jobs])

    def _release(self, pending: "_Pending") -> None:
        """Give a slot back, once no worker writes to it any more."""
        for future in pending.futures:
            future.cancel()
        wait(pending.futures)
        self._free.append(pending.slot)


@dataclass(frozen=True)
class _Job:
    task: Task
    future: Future[list[str]]  # notes for the log


@dataclass(frozen=True)
class _Pending:
    draws: list[SampleDraw]
    slot: int
    futures: list[Future[list[str]]]


def _bytes(bucket: Bucket) -> int:
    return bucket.frames * bucket.height * bucket.width * 3


def _grid_bytes(bucket: Bucket) -> int:
    return 4 * math.prod(bucket.latent)


def _no_masks(draws: list[SampleDraw]) -> Grid | None:
    """Room for the masks of a batch, as if they were white; None when no draw has one."""
    if all(draw.item.mask is None for draw in draws):
        return None
    return np.ones((len(draws), *draws[0].item.bucket.latent), np.float32)


def _shape(draws: list[SampleDraw]) -> tuple[int, int, int, int, int]:
    bucket = draws[0].item.bucket
    return len(draws), bucket.frames, bucket.height, bucket.width, 3


class _Worker:
    """One worker process, and the thread that hands it tasks and starts it anew when it died."""

    def __init__(self, tasks: "queue.SimpleQueue[_Job | None]", memory_fd: int, threads: int) -> None:
        self._tasks, self._memory_fd, self._threads = tasks, memory_fd, threads
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # between a start and stop()
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, name="data-worker", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def stop(self) -> None:
        with self._lock:
            self._stopping = True
            if self._process is not None:
                self._process.kill()  # it holds nothing worth saving

    def join(self) -> None:
        self._thread.join()

    def _serve(self) -> None:
        with suppress(OSError):  # the first task will meet it again
            self._start()
        while (job := self._tasks.get()) is not None:
            if not job.future.set_running_or_notify_cancel():
                continue
            try:
                job.future.set_result(self._perform(job.task))
            except BaseException as e:
                job.future.set_exception(e)
        self._reap()

    def _perform(self, task: Task) -> list[str]:
        """Have the task done; returns notes for the log. Raises UserError, or RuntimeError with a worker's
        traceback."""
        answer, notes = self._exchange(task), []
        if answer is None:
            notes.append(f"a data worker died ({self._reap()}) while it decoded {task.request.path}; trying once more")
            answer = self._exchange(task)
        if answer is None:
            death = self._reap()
            if self._stopping:
                raise CancelledError
            raise UserError(
                f"two data workers died of it ({death})",
                where=task.request.path,
                fix="Re-encode the clip or take it out of the folder; if they were killed, free some memory",
            )
        if answer.bug:
            raise RuntimeError(f"bug in the data worker, at {task.request.path}:\n{answer.bug}")
        if answer.what:
            raise UserError(answer.what, where=answer.where, fix=answer.fix)
        return notes

    def _exchange(self, task: Task) -> DecodeAnswer | None:
        """The worker's answer; None when it died."""
        self._start()
        process = self._process
        if process is None:
            return None
        assert process.stdin is not None and process.stdout is not None
        try:
            write_message(process.stdin, task)  # type: ignore[arg-type]
        except BrokenPipeError:
            return None
        body = read_message(process.stdout)  # type: ignore[arg-type]
        return None if body is None else msgspec.msgpack.decode(body, type=DecodeAnswer)

    def _start(self) -> None:
        """Start the process unless it runs, and wait until it is ready. Raises OSError."""
        with self._lock:
            if self._stopping or self._process is not None:
                return
            # The parent's own sys.path, and not -m, which would look into the current folder first.
            code = (
                f"import sys; sys.path[:] = {sys.path!r}; from engine.data.decode_worker import main;"
                f" main({self._memory_fd}, {self._threads}, {os.getpid()})"
            )
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(self._memory_fd,),
                process_group=0,  # a signal to the trainer's group is the trainer's business
            )
        if read_message(self._process.stdout) is None:  # type: ignore[arg-type]
            raise OSError(f"a data worker could not start ({self._reap()})")

    def _reap(self) -> str:
        """Wait for a dead or dying process; returns how it died."""
        process, self._process = self._process, None
        if process is None:
            return "ended with the loader"
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:  # an unsent task, to a process that has ended
                continue
        code = process.wait()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

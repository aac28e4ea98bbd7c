"""Which GPUs of a job are gone, and which of the others go on with its run.

Looked at in threads, because a driver may not answer: before each start of a run that has begun, and after an attempt
of several GPUs has failed. Who else uses them is daemon.machine.gpu_wait's.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import Struct

from daemon.background_io import BackgroundIO
from daemon.queue.entry import AttemptResult, Entry
from daemon.wire.protocol import JobRecord
from presets.job.gpu_shares import left_of
from presets.job.toml_file import load_job
from presets.machine.gpus import read_gpus
from presets.machine.visible_gpus import ORDER, VISIBLE
from presets.text import to_type

log = logging.getLogger("daemon")


class Left(Struct, frozen=True):
    """What is left of a job's GPUs, by its numbers."""

    use: list[int]  # those that go on with the run
    gone: list[int]  # those that cannot be used
    why: str = ""  # what is wrong with these, for people
    refused: str = ""  # why no other goes on, with what to do; "" when some do


def left(record: JobRecord, job_file: Path, *, nvml: Any = None) -> Left:
    """Ask the driver; where it says nothing at all, nothing counts as gone. `nvml` stands in for pynvml in tests.
    Raises UserError and OSError for the job file."""
    if len(record.devices) < 2:
        return Left(record.gpus, [])
    gpus, _ = read_gpus({VISIBLE: ",".join(record.devices), ORDER: "PCI_BUS_ID"}, (0, 0), nvml=nvml)
    errors = {number: gpu.error for number, gpu in zip(record.gpus, gpus, strict=False) if gpu.error}
    if not errors:
        return Left(record.gpus, [])
    job, there = load_job(job_file), [number for number in record.gpus if number not in errors]
    why = " ".join(f"GPU {number} is gone ({error})." for number, error in errors.items())
    use = left_of(job, there)
    return Left(use, list(errors), why, "" if use else _refused(record, job.job.gpus_per_clip, there))


def _refused(record: JobRecord, per_clip: int, there: Sequence[int]) -> str:
    back = f"when it is back, with: {to_type('resume', record.name)}"
    if not there:
        return f"None of its GPUs is left. Go on {back}"
    return (
        f"{per_clip} GPUs share each clip, and {len(there)} {'is' if len(there) == 1 else 'are'} left. Go on {back}; or"
        f" set job.gpus = {there[:1]} and job.gpus_per_clip = 1 in {record.job_path} first: the LoRA then agrees within"
        " rounding, and each clip has to fit on one card"
    )


def after_loss(result: AttemptResult, found: Left) -> AttemptResult:
    """What an attempt came to that lost GPUs."""
    if found.refused:
        return AttemptResult("failed", f"{result.cause} {found.why} {found.refused}.", result.cause)
    cause = f"{result.cause} {found.why} It can go on with GPU {' and '.join(map(str, found.use))}."
    return AttemptResult("failed", f"{found.why} {result.outcome}", cause, may_pass=True, lost=True)


class LostGpus:
    """Looks after attempts that have failed."""

    def __init__(self, background: BackgroundIO, job_file: Callable[[int], Path], looked: Callable[[], None]) -> None:
        """`looked`: called when another `after` would know more."""
        self._background, self._job_file, self._looked = background, job_file, looked
        self._looks: dict[int, asyncio.Task[Left]] = {}

    def after(self, entry: Entry, result: AttemptResult) -> Left | None:
        """What is left after an attempt that failed and might be made again: `gone` are those that it still had. None
        while that is being looked at."""
        record, nothing = entry.record, Left(entry.record.gpus, [])
        look = self._looks.get(record.id)
        if not result.may_pass or entry.ending or len(record.devices) < 2:
            self._looks.pop(record.id, None)
            return nothing
        if look is None:
            work = partial(left, record, self._job_file(record.id))
            look = asyncio.create_task(self._background(work, what="the NVIDIA driver"))
            look.add_done_callback(lambda _: self._looked())
            self._looks[record.id] = look
        if not look.done():
            return None
        del self._looks[record.id]
        if error := look.exception():
            log.warning("job %d: its GPUs cannot be looked at: %s", record.id, error)
            return nothing
        found = look.result()
        return found if set(found.gone) - set(record.gone) else nothing

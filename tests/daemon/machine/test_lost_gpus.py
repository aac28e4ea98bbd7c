"""What is left of a job's GPUs, with NVML alone faked, and when the driver is asked for it."""

import asyncio
from pathlib import Path

import pytest

from daemon.background_io import BackgroundIO
from daemon.machine import lost_gpus
from daemon.machine.lost_gpus import Left, LostGpus, after_loss, left
from daemon.queue.entry import AttemptResult, Entry
from daemon.wire.protocol import JobRecord
from tests.presets.machine.test_machine import Card, FakeNvml

FAILED = AttemptResult("failed", "killed. Resume with ...", "killed.", may_pass=True)


def record(gpus: list[int], gone: list[int] | None = None) -> JobRecord:
    devices = [f"GPU-{gpu}" for gpu in gpus]
    return JobRecord(
        id=1, name="a", job_path="/j.toml", out="/r", gpus=gpus, devices=devices, state="running", gone=gone or []
    )


def found(tmp_path: Path, gpus: list[int], there: list[int], *, accumulation: int = 1, per_clip: int = 1) -> Left:
    file = tmp_path / "job.toml"
    file.write_text(
        f'[job]\nname = "a"\ngpus = {gpus}\ngpus_per_clip = {per_clip}\n[training]\ngradient_accumulation ='
        f' {accumulation}\n[[datasets]]\npath = "clips"\n'
    )
    return left(record(gpus), file, nvml=FakeNvml(*(Card(uuid=f"GPU-{n}") for n in there)))


@pytest.mark.parametrize(
    ("gpus", "there", "accumulation", "per_clip", "use"),
    [
        ([0, 1], [0, 1], 1, 1, [0, 1]),
        ([0, 1], [1], 1, 1, [1]),  # one expert after the other
        ([3, 2, 1, 0], [0, 1, 3], 4, 1, [3, 1]),  # 3 do not divide 4
        ([0, 1, 2, 3], [0, 1, 3], 3, 1, [0, 1, 3]),
        ([0, 1, 2, 3], [1, 2, 3], 1, 2, [1, 2]),  # one group of two is left
        ([0, 1], [7], 1, 1, []),
        ([0, 1], [0], 1, 2, []),
    ],
)
def test_as_many_go_on_as_can_share_the_work_to_the_same_bits(tmp_path, gpus, there, accumulation, per_clip, use):
    it = found(tmp_path, gpus, there, accumulation=accumulation, per_clip=per_clip)
    assert it.use == use and it.gone == [gpu for gpu in gpus if gpu not in there]
    assert bool(it.why) == bool(it.gone) and bool(it.refused) == (not use)


def test_where_none_can_go_on_one_error_says_what_to_do(tmp_path: Path):
    it = found(tmp_path, [0, 1], [0], per_clip=2)
    end = after_loss(FAILED, it)
    assert not end.may_pass and not end.lost
    assert "killed. GPU 1 is gone" in end.outcome and "2 GPUs share each clip, and 1 is left" in end.outcome
    assert "set job.gpus = [0] and job.gpus_per_clip = 1 in /j.toml" in end.outcome
    assert "None of its GPUs is left" in found(tmp_path, [0, 1], [7]).refused


def test_a_driver_that_says_nothing_at_all_has_lost_no_gpu(tmp_path: Path):
    import pynvml

    silent = FakeNvml(init=pynvml.NVMLError_DriverNotLoaded())
    assert left(record([0, 1]), tmp_path / "unread", nvml=silent) == Left([0, 1], [])


@pytest.mark.parametrize(
    ("result", "ending", "before", "lost"),
    [
        (FAILED, "", [], True),
        (FAILED, "", [1], False),  # it did without that one already
        (AttemptResult("failed", "bad clip"), "", [], False),  # for the user to mend
        (AttemptResult("stopped"), "", [], False),
        (FAILED, "stop", [], False),
    ],
)
async def test_what_counts_is_a_gpu_that_the_attempt_still_had(
    monkeypatch: pytest.MonkeyPatch, result: AttemptResult, ending, before: list[int], lost: bool
):
    monkeypatch.setattr(lost_gpus, "left", lambda record, file: Left([0], [1], "GPU 1 is gone."))
    looked = asyncio.Event()
    looks = LostGpus(BackgroundIO(), lambda job: Path("/j.toml"), looked.set)
    entry = Entry(record=record([0, 1], before), order=0, ending=ending)
    now = looks.after(entry, result)
    if now is None:
        await looked.wait()
        now = looks.after(entry, result)
    assert now is not None and bool(now.gone) == lost and not looks._looks


async def test_a_driver_that_fails_the_look_leaves_the_failure_as_it_is(monkeypatch: pytest.MonkeyPatch):
    def fails(record: JobRecord, file: Path) -> Left:
        raise OSError("no such file")

    monkeypatch.setattr(lost_gpus, "left", fails)
    looked = asyncio.Event()
    looks = LostGpus(BackgroundIO(), lambda job: Path("/j.toml"), looked.set)
    entry = Entry(record=record([0, 1]), order=0)
    assert looks.after(entry, FAILED) is None
    await looked.wait()
    assert looks.after(entry, FAILED) == Left([0, 1], [])

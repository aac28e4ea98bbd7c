"""A card is lost while a job of several trains: the real daemon, torchrun and trainers, whose ranks compute on the CPU.
NVML alone is faked: what it knows of cards stands in a file."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from daemon.processes.start_trainer import torchrun
from daemon.wire.client import Client
from daemon.wire.protocol import JobRecord
from presets.job.toml_file import load_job, save_job, with_value
from presets.runs.events import Event
from tests.daemon.conftest import Box, until
from tests.helpers import SOME_GPUS, UNCOMPILED
from tests.helpers.jobs import events, write_job
from tests.helpers.training.attempts import ONE_THREAD
from tests.helpers.training.sameness import differences
from tests.helpers.waiting import PATIENCE


class Cards:
    """The cards of the machine, and a job that has all of them."""

    def __init__(self, box: Box, tiny: Path, count: int) -> None:
        self.box, self._tiny = box, tiny
        self._file, self._names = box.dir / "cards", [f"GPU-{uuid4()}" for _ in range(count)]
        self.there(*range(count))
        (box.dir / "settings.toml").write_text("[daemon]\nrestart_delay = 0.05\n")

    def there(self, *numbers: int) -> None:
        self._file.write_text("\n".join(self._names[n] for n in numbers))

    def job(self, **values: object) -> Path:
        """Eight steps with a checkpoint after the third and the sixth."""
        folder = self.box.dir / "job"
        how = {"clips": 4, "dataset": {"num_frames": 1}, "save": {"every": 3, "keep": 3}}
        path = write_job(folder, self._tiny, prompts=0, steps=8, gradient_accumulation=4, **how)
        job = with_value(load_job(path), "job.gpus", list(range(len(self._names))))
        for field, value in values.items():
            job = with_value(job, field.replace("__", "."), value)
        save_job(job, path)
        return path

    async def die(self, client: Client, job: Path, rank: int, *left: int) -> None:
        """Once rank `rank` hangs: its card is gone, and it."""
        log = job.parent / "runs/t/logs/attempt_1.log"
        await until(lambda: log.exists() and "on purpose" in log.read_text(errors="replace"), "the fault")
        self.there(*left)
        (record,) = await client.jobs()
        os.kill(rank_of(record, rank), signal.SIGKILL)


def rank_of(record: JobRecord, rank: int) -> int:
    for child in psutil.Process(record.pid).children(recursive=True):
        if child.environ().get("RANK") == str(rank) and "engine" in child.cmdline():
            return child.pid
    raise AssertionError(f"no rank {rank}")


def hanging(rank: int) -> list[str]:
    """torchrun's command, one rank of which stops in the middle of step 7, which is low noise's."""
    return [*torchrun(30), "--fault", f"hang:forward:7@{rank}"]


@pytest.fixture
def environment(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**ONE_THREAD, **UNCOMPILED, "WANLORA_TEST_GPUS": str(box.dir / "cards")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SOME_GPUS), os.environ["PYTHONPATH"]]))


def train_by_one(job: Path, out: Path) -> Path:
    """All of it in one process, without a daemon; gives the run folder."""
    command = [sys.executable, "-m", "engine", str(job), "--out", str(out), "--gpus", "0"]
    said = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert said.returncode == 0, said.stderr[-3000:]
    return out / "t"


def findings(told: list[Event], code: str) -> list[Event]:
    return [e for e in told if e.kind == "finding" and e.data["code"] == code]


@pytest.mark.parametrize(
    ("cards", "rank", "left", "used"),
    [
        (2, 1, [0], "0"),  # experts apart: one card does both
        # experts apart, two micro-batches at a time: three cannot share four
        pytest.param(4, 2, [0, 1, 3], "0 and 1", marks=pytest.mark.thorough),
    ],
)
async def test_a_run_goes_on_by_itself_on_what_is_left_to_the_same_bits(
    box: Box,
    tiny: Path,
    environment: None,
    cards: int,
    rank: int,
    left: list[int],
    used: str,
):
    machine = Cards(box, tiny, cards)
    job = machine.job()
    before = job.read_text()
    box.start(command=hanging(rank))
    async with box.client() as client:
        await client.submit(job)
        await machine.die(client, job, rank, *left)
        ended = await box.wait(client, "t")
    assert ended.state == "done", ended.outcome
    assert ended.attempt == 2 and ended.gpus == list(range(cards)) and ended.gone
    told = events(job.parent / "runs/t")
    (gone,) = findings(told, "gpus-gone")
    assert gone.attempt == 2 and f"to the same LoRAs with GPU {used}, and slower" in gone.data["message"]
    assert "is gone" in box.log() and f"goes on with GPU {used}" in box.log()
    assert job.read_text() == before
    shutil.rmtree(job.parent / "runs/t/logs")
    straight = await asyncio.to_thread(train_by_one, box.dir / "state/jobs/job-1.toml", job.parent / "straight")
    assert differences(job.parent / "runs/t", straight) == []


@pytest.mark.thorough  # for its length
async def test_where_the_card_is_back_at_the_next_start_all_are_used(box: Box, tiny: Path, environment: None):
    machine = Cards(box, tiny, 2)
    job = machine.job(training__steps=200, save__every=5)
    box.start(command=hanging(1))
    async with box.client() as client:
        await client.submit(job)
        await machine.die(client, job, 1, 0)
        await box.wait(client, "t", "running")

        async def without() -> JobRecord | None:
            record = await client.show("t")
            return record if record.gone == [1] and record.state == "running" else None

        assert (await until(without, "the attempt without GPU 1")).attempt == 2
        await client.stop("t")
        assert (await box.wait(client, "t")).state == "stopped"
        machine.there(0, 1)
        await client.resume("t")
        record = await box.wait(client, "t", "running")
        assert record.attempt == 3 and record.gone == []
        await client.cancel("t")
        await box.wait(client, "t")
    assert [e.attempt for e in findings(events(job.parent / "runs/t"), "gpus-gone")] == [2]


@pytest.mark.thorough  # for its length
async def test_where_those_left_cannot_share_the_clips_one_error_says_what_to_do(
    box: Box, tiny: Path, environment: None
):
    machine = Cards(box, tiny, 2)
    job = machine.job(job__gpus_per_clip=2)
    box.start(command=hanging(1))
    async with box.client() as client:
        await client.submit(job)
        await machine.die(client, job, 1, 0)
        ended = await box.wait(client, "t")
        assert ended.state == "failed" and ended.attempt == 1 and ended.restarts == 0
        assert "2 GPUs share each clip, and 1 is left" in ended.outcome and "job.gpus_per_clip = 1" in ended.outcome
        # a resume by hand says the same, and starts nothing
        await client.resume("t")
        again = await box.wait(client, "t")
        assert again.state == "failed" and "2 GPUs share each clip, and 1 is left" in again.outcome


# Which loss counts is test_lost_gpus's.
@pytest.mark.thorough
async def test_a_rank_that_is_killed_while_its_card_is_there_is_no_lost_card(box: Box, tiny: Path, environment: None):
    """It goes on as after any failure that may pass, by all of its GPUs."""
    machine = Cards(box, tiny, 2)
    job = machine.job()
    (box.dir / "settings.toml").write_text("[daemon]\nrestart_delay = 0.05\nrestarts = 1\n")
    box.start(command=[*torchrun(30), "--fault", "sigkill:forward:7@1"])
    async with box.client() as client:
        await client.submit(job)
        ended = await box.wait(client, "t")
    assert ended.gone == [] and ended.attempt == 2
    assert findings(events(job.parent / "runs/t"), "gpus-gone") == []

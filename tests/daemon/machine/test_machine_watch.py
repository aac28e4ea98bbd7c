"""How running jobs' machine does, looked at beside the loop: also where NVML or a disk never answers."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from daemon.background_io import BackgroundIO
from daemon.machine import machine_watch
from daemon.machine.machine_watch import MachineWatch, gpus_of
from daemon.wire.protocol import JobRecord
from daemon.wire.records import RunMachine
from presets.machine.gpu_health import GpuHealth, Nvml
from tests.helpers.waiting import LOOK, PATIENCE


class Answers(Nvml):
    """NVML that answers when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may, self.asked = threading.Event(), list[list[str]]()

    def look(self, gpus: Iterable[str]) -> list[GpuHealth]:
        self.asked.append(list(gpus))
        assert self.may.wait(PATIENCE)
        return [GpuHealth(gpu=gpu, busy=97) for gpu in gpus if gpu != "GPU-lost"]


def job(folder: Path, number: int = 1, **more) -> JobRecord:
    return JobRecord(
        id=number, name="a", job_path="/j", out=str(folder), gpus=[0], state="running", pid=os.getpid(), **more
    )


async def seen(watch: MachineWatch, record: JobRecord, wanted) -> RunMachine:
    for _ in range(int(PATIENCE / LOOK)):
        watch.look([(record, True)])
        found = watch.of(record)
        if found is not None and wanted(found):
            return found
        await asyncio.sleep(LOOK)
    raise AssertionError(watch.of(record))


async def test_what_the_machine_of_a_job_does(tmp_path: Path):
    (tmp_path / "a/checkpoints").mkdir(parents=True)
    (tmp_path / "a/checkpoints/state").write_bytes(b"x" * 5000)
    nvml = Answers()
    nvml.may.set()
    record = job(tmp_path, devices=["GPU-1", "GPU-lost"])
    found = await seen(
        MachineWatch(BackgroundIO(), nvml), record, lambda m: m.gpus and m.memory and m.disk_used is not None
    )
    assert found.gpus == [GpuHealth(gpu="GPU-1", busy=97)]
    assert found.disk_used == 5000 and (found.disk_free or 0) > 0
    assert 2**20 < (found.memory or 0) < (found.memory_total or 0)


async def test_nvml_that_hangs_holds_up_nothing_and_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("GPUS_EVERY", "MEMORY_EVERY", "DISK_EVERY", "SECONDS"):
        monkeypatch.setattr(machine_watch, name, 0.02)
    nvml, record = Answers(), job(tmp_path)
    watch = MachineWatch(BackgroundIO(), nvml)
    await seen(watch, record, lambda m: m.memory is not None)
    for _ in range(20):
        watch.look([(record, True)])
        await asyncio.sleep(0.01)
    assert nvml.asked == [gpus_of(record)] == [["0"]]
    nvml.may.set()
    await seen(watch, record, lambda m: m.gpus)


async def test_nobody_is_asked_about_a_job_without_a_trainer(tmp_path: Path):
    nvml = Answers()
    watch, record = MachineWatch(BackgroundIO(), nvml), job(tmp_path)
    watch.look([(record, False)])
    await asyncio.sleep(0)
    assert nvml.asked == [] and watch.of(record) is None


def test_a_look_that_costs_much_comes_seldom_and_what_it_saw_counts_longer(monkeypatch: pytest.MonkeyPatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    for took, every in ((0.001, 20.0), (0.01, 50.0), (10.0, machine_watch.SELDOM)):
        look = machine_watch._Look(20.0, machine_watch.DEAR)
        assert look.began(100.0) and not look.began(1000.0)  # it is at work
        look.ended(7, took)
        assert not look.began(99.0 + every) and look.seen(100.0 + machine_watch.STALE * every) == 7
        assert look.began(100.0 + every)
        assert look.seen(101.0 + machine_watch.STALE * every + machine_watch.SECONDS) is None
    cheap = machine_watch._Look(5.0)
    assert cheap.began(100.0)
    cheap.ended(None, 10.0)
    assert cheap.began(105.0)


async def test_memory_of_processes_that_came_later_and_of_one_that_has_gone(tmp_path: Path):
    watch = MachineWatch(BackgroundIO(), Answers())
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as child:
        found = watch._look_at_memory({1: os.getpid(), 2: child.pid})
        assert found[1] > found[2] > 2**20 and found[0] > found[1]
        child.kill()
    assert 2 not in watch._look_at_memory({1: os.getpid(), 2: child.pid})
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as child:
        assert watch._look_at_memory({3: child.pid})[3] > 0  # a job that has come since: all are asked anew
        child.kill()

"""The real daemon where something was lost or is in use: its container, a trainer, the job table, a run folder, a
GPU."""

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest

from daemon.errors import RequestRefused
from daemon.wire.protocol import JobRecord
from presets.machine.gpu_locks import holder_of
from presets.runs.events import read_events
from tests.daemon.conftest import FAKE, Box, until
from tests.helpers.interface.harness import wanlora

GPU = "GPU-5d0c1d8e-6a6e-4d43-8d0e-2f6f6f0e0001"


def settings(box: Box, text: str) -> None:
    (box.dir / "settings.toml").write_text(f"[daemon]\n{text}\n")


async def at_step(box: Box, name: str, step: int) -> None:
    events = box.run_dir(name) / "events.jsonl"

    def there() -> bool:
        return events.exists() and any(e.kind == "step" and e.data["step"] >= step for e, _ in read_events(events))

    await until(there)


async def all_killed(box: Box, *records: JobRecord) -> None:
    """As when a container ends: the daemon and its trainers at once, without a word."""
    box.process.send_signal(signal.SIGSTOP)  # so that it cannot see them end
    for record in records:
        os.kill(record.pid, signal.SIGKILL)
    box.kill9()
    await until(lambda: not box.processes())


# --- settings with a mistake ----------------------------------------------------------------------------------


async def test_a_mistake_in_the_settings_keeps_no_daemon_from_its_trainers_and_is_said(box: Box):
    box.start("--hold-at", "5")
    async with box.client() as client:
        job = await client.submit(box.job("ran"))
        await at_step(box, "ran", 5)
        box.kill9()
        settings(box, "on_bot = 1")
        box.start()
        await box.wait(client, job.id, "running")
        (trouble,) = (await client.queue()).troubles
        assert "on_bot" in trouble and "settings.toml" in trouble
        settings(box, 'on_boot = "ask"')
        assert (await client.queue()).troubles == []
        await client.cancel(job.id)
        await box.wait(client, job.id)


# --- a container that restarts --------------------------------------------------------------------------------


async def test_after_a_container_restart_what_it_broke_off_waits_for_the_user_and_comes_first(box: Box):
    box.start("--hold-at", "12")
    async with box.client() as client:
        for name in ("ran", "waited"):
            await client.submit(box.job(name))
        await at_step(box, "ran", 12)
        await all_killed(box, await client.show("ran"))
        box.start()
        ran, waited = await client.jobs()
        assert (ran.state, waited.state) == ("stopped", "queued")
        assert "ended at once" in ran.outcome and "while this job ran at step 12" in ran.outcome
        assert "wanlora resume --all" in waited.outcome
        said = await asyncio.to_thread(wanlora, "resume", "--all", "--dir", box.dir)
        assert said.returncode == 0 and "waited: queued at position 1." in said.stderr, said.stderr
        assert (await box.wait(client, "ran", "running")).attempt == 2
        await client.stop("ran")
        await box.wait(client, "waited", "running")


async def test_after_a_container_restart_jobs_go_on_by_themselves_when_the_settings_say_so(box: Box):
    settings(box, 'on_boot = "resume"')
    box.start("--hold-at", "12")
    async with box.client() as client:
        for name in ("ran", "waited"):
            await client.submit(box.job(name))
        await at_step(box, "ran", 12)
        await all_killed(box, await client.show("ran"))
        box.start()
        assert (await box.wait(client, "ran", "running")).attempt == 2
        await client.stop("ran")
        await box.wait(client, "waited", "running")
        resumed = [e for e, _ in read_events(box.run_dir("ran") / "events.jsonl") if e.kind == "started"]
        assert [e.data["resumed_from"] for e in resumed] == [0, 10]


async def test_another_first_process_is_another_container_however_the_daemon_ended(box: Box):
    box.start("--hold-at", "12")
    async with box.client() as client:
        await client.submit(box.job("ran"))
        record = await box.wait(client, "ran", "running")
        box.process.terminate()  # in an orderly way
        box.process.wait()
        os.kill(record.pid, signal.SIGKILL)
        await until(lambda: not box.processes())
        db = sqlite3.connect(box.dir / "state/jobs.sqlite3", isolation_level=None)
        db.execute("UPDATE facts SET value = '1 the container before' WHERE name = 'session'")
        db.close()
        box.start()
        ran = await client.show("ran")
        assert ran.state == "stopped" and "The container restarted while this job ran" in ran.outcome


async def test_a_trainer_that_dies_while_no_daemon_runs_is_no_restart_of_a_container(box: Box):
    box.start("--hold-at", "12")
    async with box.client() as client:
        for name in ("ran", "waited"):
            await client.submit(box.job(name))
        await at_step(box, "ran", 12)
        record = await client.show("ran")
        box.process.terminate()
        box.process.wait()
        os.kill(record.pid, signal.SIGKILL)
        await until(lambda: not box.processes())
        settings(box, "restarts = 0")
        box.start()
        assert "ended without a word after step 12" in (await box.wait(client, "ran", "failed")).outcome
        await box.wait(client, "waited", "running")  # nothing is paused


# --- a trainer that dies --------------------------------------------------------------------------------------


async def test_a_trainer_that_dies_is_restarted_from_its_checkpoint_until_it_gets_no_further(box: Box):
    settings(box, "restarts = 2\nrestart_delay = 0.05")
    box.start("--die-at", "12")
    async with box.client() as client:
        await client.submit(box.job("one"))
        failed = await box.wait(client, "one", "failed")
        assert failed.attempt == 3 and failed.outcome.startswith("It was restarted 2 times without coming to a new")
        assert "killed by SIGKILL after step 12" in failed.outcome and failed.restart_at == 0
        await client.submit(box.job("other"), no_restart=True)
        assert (await box.wait(client, "other", "failed")).attempt == 1


async def test_a_back_off_is_told_and_survives_the_daemon_and_is_ended_by_stop(box: Box):
    settings(box, "restart_delay = 3600")
    box.start("--die-at", "12")
    async with box.client() as client:
        await client.submit(box.job("one"))

        async def backing_off():
            record = await client.show("one")
            return record if record.restart_at else None

        record = await until(backing_off)
        assert (record.state, record.restarts, record.most_restarts) == ("queued", 1, 3)
        assert record.outcome.endswith("It continues from its last checkpoint by itself.")
        told = await asyncio.to_thread(wanlora, "jobs", "--dir", box.dir)
        assert "queued (1), restarts in " in told.stdout and " (1 of 3)" in told.stdout
        assert f"one (#1): {record.outcome}" in told.stderr
        box.kill9()
        box.start()
        again = await client.show("one")
        assert (again.state, again.restart_at, again.outcome) == ("queued", record.restart_at, record.outcome)
        stopped = await client.stop("one")
        assert (stopped.state, stopped.restart_at, stopped.attempt) == ("stopped", 0.0, 1)


# --- a job table that is lost ---------------------------------------------------------------------------------


async def test_trainers_that_a_lost_job_table_knew_are_taken_up_and_no_new_job_ends_them(box: Box):
    box.start("--hold-at", "12")
    async with box.client() as client:
        await client.submit(box.job("old"))
        await at_step(box, "old", 12)
        before = await client.show("old")
        box.kill9()
        shutil.rmtree(box.dir / "state")
        box.start()
        (found,) = await client.jobs()
        assert (found.name, found.run_dir, found.pid, found.gpus) == ("old", before.run_dir, before.pid, [0])
        assert (await box.wait(client, "old", "running")).step == 12 and found.attempt == 1
        await client.submit(box.job("new", gpus=[1], steps=5))
        assert (await box.wait(client, "new")).state == "done"
        with pytest.raises(RequestRefused, match=r"job 1 \(running\) already uses the run folder"):
            await client.submit(box.job("old"))
        await client.stop("old")
        stopped = await box.wait(client, "old")
        assert (stopped.state, stopped.outcome) == ("stopped", "stopped on request")
        assert (await client.replay("old"))[-1].kind == "stopped"
        await client.resume("old")
        assert (await box.wait(client, "old", "done")).attempt == 2


async def test_a_trainer_whose_job_an_older_table_holds_as_ended_is_taken_up_into_that_job(box: Box):
    box.start("--hold-at", "12")
    async with box.client() as client:
        await client.submit(box.job("old"))
        await at_step(box, "old", 12)
        pid = (await client.show("old")).pid
        box.kill9()
        db = sqlite3.connect(box.dir / "state/jobs.sqlite3", isolation_level=None)
        change = (
            "json_set(entry, '$.record.state', 'failed', '$.record.attempt', 0, '$.trainer', null, '$.marker', 'x')"
        )
        db.execute(f"UPDATE jobs SET entry = {change}")
        db.close()
        box.start()
        (record,) = await client.jobs()
        assert (record.id, record.pid, record.attempt) == (1, pid, 1)
        await client.stop("old")
        assert (await box.wait(client, "old")).state == "stopped"


async def test_a_run_folder_in_which_somebody_trains_by_hand_is_refused_and_he_is_left_alone(box: Box):
    box.start("--hold-at", "5")
    job = box.job("one")
    command = [sys.executable, str(FAKE), "--hold-at", "5", str(job), "--out", str(box.run_dir("one").parent)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "0"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as by_hand:
        await at_step(box, "one", 5)
        async with box.client() as client:
            for resume in (False, True):
                with pytest.raises(RequestRefused, match=rf"is at work in this run folder \(pid {by_hand.pid}"):
                    await client.submit(job, resume=resume)
            assert await client.jobs() == [] and by_hand.poll() is None
        by_hand.terminate()
    async with box.client() as client:
        await client.submit(job, resume=True)
        await box.wait(client, "one", "done")


# --- a GPU that is in use -------------------------------------------------------------------------------------

FAKE_NVML = """
import importlib.util, json, sys
from types import SimpleNamespace as N
spec = importlib.util.spec_from_file_location("real_pynvml", {real!r})
real = sys.modules["real_pynvml"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(real)
globals().update({{k: v for k, v in vars(real).items() if not k.startswith("__")}})
def facts(): return json.load(open({facts!r}))
def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlSystemGetDriverVersion(): return "580"
def nvmlSystemGetCudaDriverVersion_v2(): return 13000
def nvmlDeviceGetCount(): return len(facts())
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetName(card): return "NVIDIA H100"
def nvmlDeviceGetUUID(card): return f"GPU-{{card}}{dir}"
def nvmlDeviceGetCudaComputeCapability(card): return (9, 0)
def nvmlDeviceGetMemoryInfo(card): return N(total=80 * 2**30, free=(80 - sum(g for _, g in facts()[card])) * 2**30)
def nvmlDeviceGetMigMode(card): raise NVMLError_NotSupported()
def nvmlDeviceGetComputeRunningProcesses(card): return [N(pid=p, usedGpuMemory=g * 2**30) for p, g in facts()[card]]
def nvmlDeviceGetGraphicsRunningProcesses(card): return []
"""


async def test_a_gpu_that_a_foreign_process_uses_is_waited_for_and_the_other_gpus_are_not(box: Box, monkeypatch):
    facts = box.dir / "gpus.json"

    def tell(*gpus: list) -> None:
        facts.with_suffix(".new").write_text(json.dumps(gpus))
        facts.with_suffix(".new").rename(facts)

    (box.dir / "fake").mkdir()
    (box.dir / "fake/pynvml.py").write_text(
        FAKE_NVML.format(real=pynvml.__file__, facts=str(facts), dir=str(box.dir).replace("/", "-"))
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(box.dir / "fake"), *sys.path]))
    tell([[os.getpid(), 34]], [])
    box.start("--hold-at", "5")
    async with box.client() as client:
        await client.submit(box.job("first"))
        await client.submit(box.job("second"))
        await client.submit(box.job("elsewhere", gpus=[1]))

        async def why():
            return (await client.show("first")).outcome

        waits = await until(why)
        assert f"GPU 0 is used by pid {os.getpid()} " in waits and "34.0 GiB" in waits
        assert "wanlora resume first --anyway" in waits
        await box.wait(client, "elsewhere", "running")
        assert [(r.state, r.position) for r in await client.jobs()] == [("queued", 1), ("queued", 2), ("running", 0)]
        tell([], [])
        assert (await box.wait(client, "first", "running")).attempt == 1
        tell([[os.getpid(), 34]], [])
        await client.stop("first")
        await box.wait(client, "second", "queued")
        await until(lambda: client.show("second"))

        async def second_waits():
            return "is used by" in (await client.show("second")).outcome

        await until(second_waits)
        await client.resume("second", anyway=True)
        await box.wait(client, "second", "running")


async def test_two_daemons_do_not_share_a_gpu_also_when_one_has_died(box: Box, short_dir: Path, monkeypatch):
    gpu = f"GPU-{short_dir.name}"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpu)
    (short_dir / "other").mkdir()
    other = Box(short_dir / "other")
    box.start("--hold-at", "5")
    other.start("--hold-at", "5")
    try:
        async with box.client() as client, other.client() as client_of_other:
            await client.submit(box.job("one"))
            await box.wait(client, "one", "running")
            await client_of_other.submit(other.job("two"))

            async def why():
                return (await client_of_other.show("two")).outcome

            assert "GPU 0 is taken by one (user " in await until(why)
            box.kill9()
            assert holder_of(gpu).startswith("one (user ")  # the trainer has it
            box.start()
            await client.stop("one")
            await box.wait(client, "one")
            await other.wait(client_of_other, "two", "running")
            assert holder_of(gpu).startswith("two (user ")
    finally:
        await other.tear_down()


# --- the clock ------------------------------------------------------------------------------------------------


async def test_a_clock_that_is_set_back_keeps_no_trainer_alive(box: Box, monkeypatch):
    (box.dir / "fake").mkdir()
    (box.dir / "fake/sitecustomize.py").write_text(
        "import os, time\nreal = time.time\n"
        f"time.time = lambda: real() - (86400 if os.path.exists({str(box.dir / 'set_back')!r}) else 0)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(box.dir / "fake"), *sys.path]))
    box.start("--deaf", "--hold-at", "5")
    async with box.client() as client:
        await client.submit(box.job("one"))
        await box.wait(client, "one", "running")
        await client.cancel("one")
        (box.dir / "set_back").touch()
        record = await box.wait(client, "one", "cancelled")
        assert record.finished_at < record.started_at  # the stamps are the wall's

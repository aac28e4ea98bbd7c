"""A daemon that comes back to a machine that restarted, and to one where everything was left in the middle."""

import os
import sqlite3
import subprocess
import sys

import msgspec
import pytest

from daemon.errors import RequestRefused
from daemon.processes.proc import MARKER, identify, is_alive
from daemon.queue.entry import Entry
from daemon.table.job_store import Store
from daemon.wire.protocol import JobRecord
from tests.daemon.conftest import FAKE, Box, until
from tests.helpers.interface.harness import wanlora


def pretend_reboot(box: Box) -> None:
    """As if the table had been written before a restart of the machine."""
    db = sqlite3.connect(box.dir / "state/jobs.sqlite3")
    db.execute("UPDATE facts SET value = 'the boot before' WHERE name = 'boot'")
    db.commit()
    db.close()


async def test_after_a_reboot_the_queue_comes_back_paused(box: Box):
    box.start("--hold-at", "5")
    async with box.client() as client:
        await client.submit(box.job("ran"))
        await client.submit(box.job("waited"))
        record = await box.wait(client, "ran", "running")
        await until(lambda: (box.run_dir("ran") / "events.jsonl").read_bytes().count(b'"step"') >= 5)
        box.kill9()
        os.kill(record.pid, 9)
        await until(lambda: not box.processes())
        pretend_reboot(box)
        box.start()
        ran, waited = await client.jobs()
        assert ran.state == "stopped" and "The machine restarted while this job ran at step" in ran.outcome
        assert ran.interrupted and not waited.interrupted
        listed = wanlora("jobs", "--dir", box.dir).stderr
        assert "ran (#1): broken off by a restart. Everything goes on, these first, with:" in listed
        assert "waited (#2): The machine restarted. What was queued then waits" in listed
        assert waited.state == "queued" and "The machine restarted. What was queued then waits" in waited.outcome
        box.kill9()
        box.start()  # the pause holds for the next daemon too
        assert (await client.show("waited")).state == "queued"
        assert not (box.run_dir("waited") / "logs").exists()
        await client.resume("ran")
        assert not (await box.wait(client, "ran", "running")).interrupted  # it alone
        assert (await client.show("waited")).outcome.startswith("The machine restarted. What was queued then waits")
        await client.resume_all()
        assert [(j.state, j.outcome) for j in await client.jobs()] == [("running", ""), ("queued", "")]


async def test_a_job_that_was_done_before_the_reboot_is_done(box: Box):
    box.start("--linger")
    async with box.client() as client:
        await client.submit(box.job("one"))
        record = await box.wait(client, "one", "running")
        await until(lambda: b'"done","data"' in (box.run_dir("one") / "events.jsonl").read_bytes())
        box.kill9()
        os.kill(record.pid, 9)
        await until(lambda: not box.processes())
        pretend_reboot(box)
        box.start()
        assert (await client.show("one")).state == "done"


async def test_a_job_table_that_cannot_be_written_for_a_while_stops_no_training(box: Box):
    box.start("--hold-at", "5")
    async with box.client() as client:
        await client.submit(box.job("one"))
        await box.wait(client, "one", "running")
        db = sqlite3.connect(box.dir / "state/jobs.sqlite3", isolation_level=None)
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(RequestRefused, match="could not do it: database is locked"):
            await client.submit(box.job("two"))
        await client.stop("one")
        assert (await box.wait(client, "one")).state == "stopped"
        assert b'"state":"stopped"' not in db.execute("SELECT entry FROM jobs").fetchone()[0].encode()
        db.execute("ROLLBACK")
        await until(lambda: '"state":"stopped"' in db.execute("SELECT entry FROM jobs").fetchone()[0])
        db.close()
        assert [j.name for j in await client.jobs()] == ["one"]
        await client.submit(box.job("two"))


def left_in_the_middle(box: Box, **values) -> None:
    """A job table as a daemon leaves it that dies between the decision to launch and the launch."""
    (box.dir / "state/jobs").mkdir(parents=True)
    job = box.job("one")
    (box.dir / "state/jobs/job-1.toml").write_text(job.read_text())
    store = Store(box.dir / "state/jobs.sqlite3")
    with store:
        record = JobRecord(
            id=1, name="one", job_path=str(job), out=str(box.dir / "jobs/runs"), gpus=[0], state="starting", attempt=1
        )
        store.save(Entry(record=record, order=1, **values))
    store.close()


async def test_a_decided_launch_is_made_up_for(box: Box):
    left_in_the_middle(box)
    box.start()
    async with box.client() as client:
        done = await box.wait(client, "one")
        assert (done.state, done.attempt) == ("done", 1)


async def test_a_launched_trainer_whose_pid_was_not_noted_is_found_by_its_marker(box: Box):
    left_in_the_middle(box)
    trainer = subprocess.Popen(
        [
            sys.executable,
            str(FAKE),
            "--hold-at",
            "5",
            str(box.dir / "state/jobs/job-1.toml"),
            "--out",
            str(box.dir / "jobs/runs"),
        ],
        env=os.environ | {MARKER: f"{box.dir}/state:1", "CUDA_VISIBLE_DEVICES": "0"},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    box.start()
    async with box.client() as client:
        assert (await box.wait(client, "one", "running")).pid == trainer.pid
        await client.stop("one")
        assert (await box.wait(client, "one")).state == "stopped"
    trainer.wait()


async def test_a_pid_that_came_round_again_is_not_adopted_and_not_harmed(box: Box):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as stranger:
        own = identify(stranger.pid)
        left_in_the_middle(box, trainer=msgspec.structs.replace(own, start=own.start - 100))
        box.start()
        async with box.client() as client:
            lost = await box.wait(client, "one")
            assert lost.state == "failed" and "ended without a word" in lost.outcome
        assert is_alive(own)
        stranger.kill()

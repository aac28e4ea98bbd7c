"""A daemon whose state lies on a disk that takes nothing: it starts, says so, and what runs can be seen and ended."""

import asyncio
import json
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.errors import RequestRefused
from tests.daemon.conftest import Box, until
from tests.helpers import ROOT
from tests.helpers.waiting import PATIENCE

# no file of the daemon may grow, nor be made: as on a full disk, for this process alone
FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (400, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
from daemon.__main__ import main
sys.exit(main())
"""


def wanlora(box: Box, *args: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "wanlora_tui.cli", *args, "--dir", str(box.dir)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


async def test_it_starts_says_so_and_obeys_until_there_is_room_again(box: Box):
    box.start("--hold-at", "5")
    async with box.client() as client:
        for name in ("one", "two"):
            await client.submit(box.job(name))
        record = await box.wait(client, "one", "running")
        box.kill9()
        box.program = ["-c", FULL]
        pid = box.start()
        assert [(j.name, j.state, j.pid) for j in await client.jobs()] == [
            ("one", "running", record.pid),
            ("two", "queued", 0),
        ]
        for mark, said in (("Problem:", wanlora(box, "daemon", "status", code=1)), ("!", wanlora(box, "jobs"))):
            assert f"{mark} the job table cannot be written" in said and "kept in memory" in said
        assert "may grow" in json.loads(wanlora(box, "daemon", "status", "--json", code=1))["problems"][0]
        for asking in (client.submit(box.job("three")), client.resume("two")):
            with pytest.raises(RequestRefused, match="nothing can be accepted while") as refused:
                await asking
            assert "--dir" in refused.value.fix
        (_, view) = await client.snapshot("one")
        assert view.step >= 1
        await client.set("one", "training.lr", "5e-5")
        await client.stop("one")
        assert (await box.wait(client, "one")).state == "stopped"
        await box.wait(client, "two", "starting")  # and no further: the next daemon would not know of it
        resource.prlimit(pid, resource.RLIMIT_FSIZE, resource.getrlimit(resource.RLIMIT_FSIZE))
        await box.wait(client, "two", "running")
        assert (await client.queue()).troubles == []
        await client.submit(box.job("three"))
        box.kill9()
        box.program = []
        box.start()
        assert [(j.name, j.state) for j in await client.jobs()] == [
            ("one", "stopped"),
            ("two", "running"),
            ("three", "queued"),
        ]


@pytest.fixture
def small_disk(short_dir: Path) -> Iterator[Path]:
    """A real one of 2 MiB, for the whole directory of a daemon."""
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", short_dir], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"this system lets us mount nothing: {made.stderr.strip()}")
    yield short_dir
    subprocess.run(["umount", "-l", short_dir], check=True)


def fill(disk: Path) -> Path:
    path = disk / "filled"
    with path.open("ab", buffering=0) as f:
        try:
            while True:
                f.write(bytes(4096))
        except OSError:
            return path


async def test_a_real_full_disk(small_disk: Path, tmp_path: Path):
    box = Box(small_disk)
    box.start("--hold-at", "5")
    async with box.client() as client:
        await client.submit(box.job("one"), tmp_path)
        await box.wait(client, "one", "running")
        box.kill9()
        filled = fill(small_disk)
        box.start()
        assert (await client.show("one")).state == "running"
        (trouble,) = (await client.queue()).troubles
        assert f"the disk of {box.dir}/state is full (0 B are free)" in trouble
        with pytest.raises(RequestRefused, match=r"while the disk of .*/state is full \(0 B are free\)"):
            await client.resume("one")
        await client.stop("one")
        assert (await box.wait(client, "one")).state == "stopped"
        filled.unlink()

        async def on_disk() -> bool:
            return not (await client.queue()).troubles

        await until(on_disk)
        await client.resume("one")
        await box.wait(client, "one", "running")
    await box.tear_down()


async def test_a_daemon_that_cannot_even_start_on_a_full_disk_says_why(small_disk: Path):
    (small_disk / "state").mkdir(mode=0o700)
    fill(small_disk)
    said = wanlora(Box(small_disk), "daemon", "start", code=1)
    assert "No space left on device" in said and "daemon.log could not be opened" in said


async def test_a_disk_that_has_become_read_only(small_disk: Path, short_dir: Path, monkeypatch):
    """Only the state; sockets have their own."""
    state, run = small_disk / "state", Path("/dev/shm") / f"wl{os.getpid()}"
    run.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(run))
    start = [sys.executable, "-m", "wanlora_tui.cli", "daemon"]

    async def said(*command: str, code: int = 0) -> str:
        done = await asyncio.to_thread(
            subprocess.run, [*start, *command], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    try:
        await said("start")
        await said("stop")
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
        await said("start")
        told = await said("status", code=1)
        assert "is read-only" in told and f"Make {state}/wanlora writable" in told
        assert f"no log file: {state}/wanlora/daemon.lock cannot be written either" in told
        await said("stop")
    finally:
        subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
        for path in sorted(run.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        run.rmdir()


async def test_a_bad_row_is_said_and_the_other_jobs_go_on(box: Box):
    box.start("--hold-at", "5")
    async with box.client() as client:
        for name in ("one", "two"):
            await client.submit(box.job(name))
        await box.wait(client, "one", "running")
        box.kill9()
        db = sqlite3.connect(box.dir / "state/jobs.sqlite3")
        db.execute("UPDATE jobs SET entry = substr(entry, 1, 150) WHERE id = 2")
        db.commit()
        db.close()
        box.start()
        assert [(j.name, j.state) for j in await client.jobs()] == [("one", "running")]
        assert "job 2 (two) cannot be read" in box.log()
        for mark, said in (("Problem:", wanlora(box, "daemon", "status", code=1)), ("!", wanlora(box, "jobs"))):
            assert f"{mark} job 2 (two) cannot be read" in said and "its run folder too" in said
        assert (await client.submit(box.job("three"))).id == 3


async def test_a_table_cut_in_half_is_set_aside_and_said(box: Box):
    box.start("--hold-at", "5")
    async with box.client() as client:
        await client.submit(box.job("one"))
        await box.wait(client, "one", "running")
        await client.shutdown()
        await asyncio.to_thread(box.process.wait)
        path = box.dir / "state/jobs.sqlite3"
        path.write_bytes(path.read_bytes()[:-100])
        box.start()
        assert [(j.name, j.state) for j in await client.jobs()] == [("one", "running")]
        (trouble,) = (await client.queue()).troubles
        assert "a damaged job table was set aside" in trouble and f"{path}.damaged-" in trouble

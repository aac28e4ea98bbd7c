"""Copies of job files: nothing is left of one that was not wanted, whatever its disk does."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from daemon.background_io import BackgroundIO
from daemon.table.job_copies import tidy, written_aside
from presets.errors import UserError
from tests.helpers.waiting import PATIENCE


async def test_it_is_renamed_or_gone(tmp_path: Path):
    beside = partial(BackgroundIO(), what="x")
    async with written_aside("one", tmp_path / "jobs", beside) as copy:
        assert copy.read_text() == "one"
        copy.replace(tmp_path / "jobs/job-1.toml")
    with pytest.raises(UserError, match="refused"):
        async with written_aside("two", tmp_path / "jobs", beside):
            raise UserError("refused")
    assert [(f.name, f.read_text()) for f in (tmp_path / "jobs").iterdir()] == [("job-1.toml", "one")]


async def test_a_disk_that_hangs_leaves_nothing_and_holds_up_nobody(tmp_path: Path):
    go, background = threading.Event(), BackgroundIO()

    async def hanging(work: Callable[[], None]) -> None:
        await background(lambda: go.wait(PATIENCE) and work(), what="x", seconds=0.05)

    with pytest.raises(UserError, match="has not come for 0 s"):
        async with written_aside("one", tmp_path, hanging):
            pass
    go.set()
    async with asyncio.timeout(PATIENCE):
        while background._at_work:
            await asyncio.sleep(0.01)
    assert list(tmp_path.iterdir()) == []


async def test_a_disk_that_takes_nothing_is_named(tmp_path: Path):
    (tmp_path / "jobs").symlink_to("/proc/self")
    with pytest.raises(UserError, match="nothing can be accepted while"):
        async with written_aside("one", tmp_path / "jobs", partial(BackgroundIO(), what="x")):
            pass


def test_what_a_killed_daemon_left_is_removed(tmp_path: Path):
    for name in (".0a.tmp", "job-1.toml"):
        (tmp_path / name).touch()
    tidy(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["job-1.toml"]

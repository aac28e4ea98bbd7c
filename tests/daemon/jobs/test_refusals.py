"""What is said of a failure names the disk that it came from."""

import errno
import sqlite3
from pathlib import Path

import pytest

from daemon.background_io import BackgroundIO
from daemon.jobs.refusals import refused
from presets.errors import UserError


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")  # as a write says it, without a path


async def test_a_full_disk_of_a_run_is_named_and_not_that_of_the_daemon(tmp_path: Path):
    with pytest.raises(OSError, match="No space") as failed:
        await BackgroundIO()(full, what="/big/runs/orbit")
    said = refused(failed.value, tmp_path)
    assert "the disk of /big/runs/orbit is full" in said.what and "Make room there" in said.fix
    assert str(tmp_path) not in said.what + said.fix


def test_others_are_said_as_they_are(tmp_path: Path):
    assert refused(OSError(5, "Input/output error", "/x"), tmp_path).fix == "Check the disk of /x"
    assert refused(sqlite3.OperationalError("locked"), tmp_path).fix == f"Check the disk of {tmp_path}"
    assert refused(UserError("is wrong", where="job.toml", fix="Mend it"), tmp_path).what == "job.toml: is wrong"

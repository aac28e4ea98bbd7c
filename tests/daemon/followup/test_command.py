"""A user's command, watched to its end. What daemons have to do with it is in tests.daemon.test_follow_ups."""

import time
from pathlib import Path

import pytest

from daemon.background_io import BackgroundIO
from daemon.followup.command import run_command


@pytest.mark.process
async def test_a_clock_that_is_set_ends_no_command_before_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real, hours = time.time, 0

    def racing() -> float:
        nonlocal hours
        hours += 1
        return real() + 3600 * hours

    monkeypatch.setattr(time, "time", racing)
    end = await run_command(
        "sleep 0.3; echo said; exit 3",
        begun=tmp_path / "begun",
        environment={},
        log=tmp_path / "log",
        spare_log=tmp_path / "spare",
        seconds=600.0,
        background=BackgroundIO(),
    )
    assert end.text.startswith("ended with exit code 3") and (tmp_path / "log").read_text() == "said\n"

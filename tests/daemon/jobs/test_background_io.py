"""Work that hangs: its asker is told, and neither the loop nor the end of the process waits for it."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.jobs import background_io
from daemon.jobs.background_io import BackgroundIO
from presets.errors import UserError
from tests.helpers import ROOT


def fail() -> None:
    raise TimeoutError(110, "the disk's own")


async def test_it_gives_what_the_work_gives():
    beside = BackgroundIO()
    assert await beside(lambda: 7, what="x") == 7
    with pytest.raises(TimeoutError, match="the disk's own"):
        await beside(fail, what="x")


async def test_what_hangs_is_given_up_and_only_so_much_may_hang(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(background_io, "MOST", 3)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    beside = BackgroundIO()
    for _ in range(3):
        with pytest.raises(UserError, match=r"/net/job\.toml: has not come for 0 s"):
            await beside(pipe.read_bytes, what="/net/job.toml", seconds=0.05)
    with pytest.raises(UserError, match="too many files do not come"):
        await beside(lambda: 7, what="x")
    os.close(os.open(pipe, os.O_WRONLY))  # the disk is back
    async with asyncio.timeout(30):
        while beside._at_work:
            await asyncio.sleep(0.01)
    assert await beside(lambda: 7, what="x") == 7


def test_a_process_ends_all_the_same(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    code = (
        "import asyncio\nfrom pathlib import Path\nfrom daemon.jobs.background_io import BackgroundIO\n"
        "from presets.errors import UserError\ntry:\n"
        f"    asyncio.run(BackgroundIO()(Path({str(tmp_path / 'pipe')!r}).read_bytes, what='x', seconds=0.05))\n"
        "except UserError as e:\n    print(e)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert "has not come" in said.stdout and said.stderr == ""

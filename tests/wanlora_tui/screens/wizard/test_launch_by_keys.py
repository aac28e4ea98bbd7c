"""From `wanlora` to a launched job with two previews, on a real terminal with the keys that it takes: ten at most.

The base lies where the Hub's files are kept, as on the machine of whoever has trained before.
"""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from daemon.wire.client import Client
from daemon.wire.protocol import JobRecord
from presets.job.schema import ModelPanel
from presets.job.toml_file import load_job
from tests.helpers.interface.harness import environment
from tests.helpers.interface.wizard_pilot import make_base, make_clips
from tests.helpers.terminal import Terminal
from tests.helpers.waiting import until

pytestmark = pytest.mark.process
MOST = 10  # keys besides the path of the clips


def keep_base(hub: Path) -> None:
    """The default base in a cache of the Hub's files."""
    repo = hub / f"models--{ModelPanel().path.replace('/', '--')}"
    make_base(repo / "snapshots" / "0123abcd")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0123abcd")


async def jobs(folder: Path) -> list[JobRecord]:
    async with Client(folder) as client:
        return await client.jobs()


@pytest.mark.thorough  # the same way is walked in test_nothing_is_lost, without terminal and daemon
def test_a_job_with_two_previews_takes_ten_keys_and_a_path(folder: Path, tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "orbit", 3)
    keep_base(tmp_path / "hub")
    keys = 0
    command = [sys.executable, "-m", "wanlora_tui.cli", "--dir", str(folder)]
    env = environment(HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_OFFLINE="1", XDG_STATE_HOME=str(tmp_path / "state"))
    terminal = Terminal(command, cwd=tmp_path, env=env)

    def press(key: str, wanted: str) -> None:
        nonlocal keys
        terminal.press(key)
        keys += 1
        terminal.wait(wanted)

    try:
        terminal.wait("No jobs yet")
        press("n", "step 1 of 6")
        press("enter", "step 2 of 6")
        terminal.press(os.path.relpath(clips, tmp_path))
        press("enter", "3 clips")
        press("f8", "step 3 of 6")
        press("f8", "step 4 of 6")
        press("f8", "^F adds two")
        press("f3", "Prompt 2")
        press("f8", "step 6 of 6")
        terminal.wait(lambda text: "WARNINGS" in text and "checking" not in text, "the check")
        press("f8", "attempt 1")
        until(lambda: asyncio.run(jobs(folder)), "the job")
    finally:
        terminal.close()
    (record,) = asyncio.run(jobs(folder))
    assert len(load_job(Path(record.job_path)).sample.prompts) == 2
    assert keys <= MOST

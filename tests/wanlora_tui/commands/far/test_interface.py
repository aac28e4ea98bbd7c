"""The interface over a real sshd: jobs of another machine, its pictures and files, and the wizard there, all on one
terminal."""

import asyncio
import sys
from pathlib import Path

import pytest

from daemon.wire.stop import stop_daemon
from tests.helpers.interface.harness import write_job
from tests.helpers.sshd import ALIAS, OtherMachine, needs_sshd
from tests.helpers.terminal import Terminal
from tests.helpers.waiting import until
from tests.wanlora_tui.remote.test_connection import submitted

pytestmark = [needs_sshd, pytest.mark.process]


def test_jobs_wizard_pictures_and_files_of_another_machine(box: OtherMachine, here: Path):
    asyncio.run(submitted(box.daemon_dir, write_job(box.home, "far_v1", steps=20)))
    run = box.home / "runs/far_v1"
    command = [sys.executable, "-m", "wanlora_tui.cli", "--dir", str(here / "own"), "--host", ALIAS]
    terminal = Terminal(command, size=(100, 30), cwd=here, env=box.environment(XDG_CACHE_HOME=str(here / "cache")))
    try:
        terminal.wait("✓ done")
        terminal.wait(f"{ALIAS}:{run}", "its run folder")
        terminal.press("n")
        terminal.wait("step 1 of 6 · Kind", "the wizard there")
        terminal.resize(120, 40)
        terminal.wait("▶ 1 Kind", "the wizard in a wider terminal")
        asyncio.run(submitted(box.daemon_dir, write_job(box.home, "of_the_wizard", steps=20)))
        terminal.press("escape")
        terminal.wait("of_the_wizard", "the dashboard of the job that came of it")
        terminal.wait("GPU 0 on box")
        terminal.press("escape", "down", "enter")
        terminal.wait(lambda text: text.startswith(" far_v1"), "the dashboard of the first job")
        terminal.wait("▀▀▀▀", "its preview")
        terminal.wait("B brings the newest LoRA files")
        (run / "far_v1_high_noise.safetensors").write_bytes(b"lora")
        terminal.press("B")
        until((here / "far_v1/far_v1_high_noise.safetensors").exists, "the file here")
        terminal.wait("1 LoRA file, 4 B")
        terminal.press("q")
        assert terminal.wait_end() == 0
        assert not any((here / "own").glob("run/*")), "a daemon was started here"
    finally:
        terminal.close()


def test_a_run_goes_on_telling_itself_when_the_daemon_there_has_ended(box: OtherMachine, here: Path):
    asyncio.run(submitted(box.daemon_dir, write_job(box.home, "far_v1", steps=150, pace_ms=100)))
    command = [sys.executable, "-m", "wanlora_tui.cli", "--dir", str(here / "own"), "attach", "far_v1", "--host", ALIAS]
    terminal = Terminal(command, size=(100, 30), cwd=here, env=box.environment(XDG_CACHE_HOME=str(here / "cache")))
    try:
        terminal.wait("● daemon alive")
        stop_daemon(box.daemon_dir)
        terminal.wait("no daemon runs there (key d)")
        terminal.wait("step 150/150", "the last step")
        assert "daemon alive" not in terminal.text
    finally:
        terminal.close()

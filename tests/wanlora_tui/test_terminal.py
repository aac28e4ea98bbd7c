"""The real program on a real pseudo-terminal, as a terminal emulator sees it."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pyte
import pytest

from daemon.client import Client
from daemon.protocol import JobRecord
from tests.waiting import PATIENCE
from tests.wanlora_tui.harness import ROOT, environment, own_daemon, until, write_job


class Terminal:
    """One `wanlora` on a terminal of its own."""

    def __init__(self, *args: str, size: tuple[int, int] = (80, 24), **env: str) -> None:
        columns, rows = size
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.process = pexpect.spawn(sys.executable, ["-m", "wanlora_tui.cli", *args], cwd=str(ROOT), env=environment(**env), dimensions=(rows, columns), timeout=PATIENCE)

    @property
    def text(self) -> str:
        return "\n".join(self.screen.display)

    def read(self) -> None:
        try:
            data = self.process.read_nonblocking(65536, timeout=0.05)
        except (pexpect.TIMEOUT, pexpect.EOF):
            return
        if b"\x1b[c" in data:  # "what are you?": a terminal answers
            self.process.send(b"\x1b[?62;22c")
        self._stream.feed(data.replace(b"\x1b[16t", b"").replace(b"\x1b[>q", b""))

    def wait(self, condition: Callable[[str], bool], what: str) -> None:
        def met() -> bool:
            self.read()
            return condition(self.text)

        try:
            until(met, what)
        except AssertionError as e:
            raise AssertionError(f"{e}; the terminal shows:\n{self.text}") from None

    def wait_end(self) -> int:
        until(lambda: (self.read(), not self.process.isalive())[1], "the end of the program")
        self.read()
        assert self.process.exitstatus is not None
        return int(self.process.exitstatus)


@pytest.fixture
def folder() -> Iterator[Path]:
    with own_daemon() as folder:
        yield folder


def submit(folder: Path, job: Path) -> JobRecord:
    async def go() -> JobRecord:
        async with Client(folder) as client:
            return await client.submit(job)

    return asyncio.run(go())


def record_of(folder: Path, job: JobRecord) -> JobRecord:
    async def go() -> JobRecord:
        async with Client(folder) as client:
            return await client.show(job.id)

    return asyncio.run(go())


@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}, {"TERM": "screen-256color", "TMUX": "/tmp/none,1,0"}])
def test_attach_draws_and_q_says_how_to_come_back(folder: Path, tmp_path: Path, env: dict[str, str]):
    submit(folder, write_job(tmp_path, steps=100_000, pace_ms=20))
    terminal = Terminal("attach", "--dir", str(folder), **env)
    terminal.wait(lambda text: "orbit_v1" in text and "● trainer progressing" in text and "Detach" in text, "the dashboard")
    terminal.process.send("q")
    assert terminal.wait_end() == 0
    assert "orbit_v1 goes on training. Come back with: wanlora attach orbit_v1" in terminal.text


def test_a_killed_interface_stops_nothing_and_is_told_what_it_missed(folder: Path, tmp_path: Path):
    job = submit(folder, write_job(tmp_path, steps=100_000, pace_ms=20))
    terminal = Terminal("attach", "orbit_v1", "--dir", str(folder))
    terminal.wait(lambda text: "● trainer progressing" in text, "the dashboard")
    seen = folder / "state/tui.json"
    terminal.wait(lambda _: seen.exists(), "the note of what was seen")
    os.kill(terminal.process.pid, signal.SIGKILL)
    terminal.process.wait()
    killed_at = record_of(folder, job).step
    until(lambda: record_of(folder, job).step > killed_at + 100, "the steps after the kill")
    again = Terminal("attach", "--dir", str(folder))
    again.wait(lambda text: "Since you left:" in text and "● trainer progressing" in text, "what was missed")
    again.process.send("q")
    assert again.wait_end() == 0


def test_a_dumb_terminal_is_told_what_to_use(folder: Path):
    terminal = Terminal("--dir", str(folder), TERM="dumb")
    assert terminal.wait_end() == 1
    assert "wanlora watch" in terminal.text

"""The real program on a real pseudo-terminal, as a terminal emulator sees it."""

import asyncio
import os
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pyte
import pytest

from daemon.wire.client import Client
from daemon.wire.protocol import JobRecord
from tests.helpers import ROOT
from tests.helpers.interface.harness import environment, own_daemon, write_job
from tests.helpers.terminal import Screen, Terminal
from tests.helpers.tiers import thorough
from tests.helpers.waiting import until


@pytest.fixture
def folder() -> Iterator[Path]:
    with own_daemon() as folder:
        yield folder


@pytest.fixture
def terminal(folder: Path) -> Iterator[Callable[..., Terminal]]:
    """`terminal("attach", TERM="dumb")`: `wanlora` on a terminal of its own, with the daemon of `folder`."""
    with ExitStack() as opened:

        def open_terminal(*args: str, **env: str) -> Terminal:
            command = [sys.executable, "-m", "wanlora_tui.cli", *args, "--dir", str(folder)]
            return opened.enter_context(closing(Terminal(command, cwd=ROOT, env=environment(**env))))

        yield open_terminal


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


@pytest.mark.parametrize(
    "env", [*thorough({}, {"NO_COLOR": "1"}), {"TERM": "screen-256color", "TMUX": "/tmp/none,1,0"}]
)
def test_attach_draws_and_q_says_how_to_come_back(
    folder: Path, tmp_path: Path, terminal: Callable[..., Terminal], env: dict[str, str]
):
    submit(folder, write_job(tmp_path, steps=100_000, pace_ms=200))
    screen = terminal("attach", **env)
    screen.wait(
        lambda text: "orbit_v1" in text and "● trainer progressing" in text and "Detach" in text, "the dashboard"
    )
    screen.press("q")
    assert screen.wait_end() == 0
    assert "orbit_v1 keeps training. Come back with: wanlora --dir" in screen.text
    # the terminal breaks the line where it ends
    assert f"wanlora--dir{folder}attachorbit_v1" in "".join(screen.text.split())


def test_a_killed_interface_stops_nothing_and_is_told_what_it_missed(
    folder: Path, tmp_path: Path, terminal: Callable[..., Terminal]
):
    job = submit(folder, write_job(tmp_path, steps=100_000, pace_ms=20))
    screen = terminal("attach", "orbit_v1")
    screen.wait("● trainer progressing")
    seen = folder / "state/tui.json"
    screen.wait(lambda _: seen.exists(), "the note of what was seen")
    screen.kill9()
    killed_at = record_of(folder, job).step
    until(lambda: record_of(folder, job).step > killed_at + 100, "the steps after the kill")
    again = terminal("attach")
    again.wait(lambda _: b"Since you left:" in again.raw, "what was missed")
    again.wait("● trainer progressing")
    again.press("q")
    assert again.wait_end() == 0


def test_one_that_was_stopped_and_goes_on_reads_each_key_once_and_ends(
    folder: Path, tmp_path: Path, terminal: Callable[..., Terminal]
):
    submit(folder, write_job(tmp_path, steps=100_000, pace_ms=200))
    screen = terminal("attach")
    screen.wait("● trainer progressing")
    before = termios.tcgetattr(screen.process.child_fd)[3]
    for shell in (False, True):  # as `kill -STOP` does it, and as a shell that takes the terminal meanwhile
        os.kill(screen.process.pid, signal.SIGSTOP)
        if shell:
            modes = termios.tcgetattr(screen.process.child_fd)
            modes[3] |= termios.ICANON | termios.ECHO
            termios.tcsetattr(screen.process.child_fd, termios.TCSANOW, modes)
        os.kill(screen.process.pid, signal.SIGCONT)
        until(lambda: termios.tcgetattr(screen.process.child_fd)[3] == before, "the terminal as it was")
        screen.press("?")
        screen.wait(lambda text: "trainer progressing" not in text, "the help")
        screen.press("escape")
        screen.wait("● trainer progressing")
    screen.press("q")
    assert screen.wait_end() == 0


def test_sizes_that_follow_each_other_at_once_end_in_the_picture_of_the_last(terminal: Callable[..., Terminal]):
    screen = terminal(NO_COLOR="1")
    screen.wait("No jobs yet")
    screen.press("f1")
    whole = ("daemon alive", "Open the wizard", "Close")
    before = screen.wait(lambda text: all(words in text for words in whole) and text, "the help")
    for _ in range(2):
        screen.resize(40, 12)
        screen.resize(80, 24)
        screen.wait(lambda text: text == before, "what was cut off")
        screen.resize(100, 30)
        screen.wait(lambda text: len(text.split("\n")) == 30 and text != before, "a larger one")
        screen.resize(40, 12)
        screen.resize(80, 24)
        screen.wait(lambda text: text == before, "the same one again")


def test_a_dumb_terminal_is_told_what_to_use(terminal: Callable[..., Terminal]):
    screen = terminal(TERM="dumb")
    assert screen.wait_end() == 1
    assert "the terminal says it can draw nothing" in screen.text and "wanlora --dir" in screen.text


def test_the_rows_of_the_emulated_screen_are_what_it_displays():
    """Only those that were drawn on are read anew, so each way to change one is shown here."""
    screen = Screen(8, 4)
    stream = pyte.ByteStream(screen)
    for data in (
        "one\r\ntwo\r\nthree\r\nfour",
        "\r\nfive",  # all go up
        "\x1b[1;1H日本x\x1b[4;7H語e\u0301",  # two cells wide; a mark on the letter before
        "\x1b[2;1H\x1b[K\x1b[3;2H\x1b[P\x1b[1@\x1b[2X",  # within a line
        "\x1b[1;1H\x1b[L\x1b[3;1H\x1b[M\x1b[1;1H\x1bM",  # lines put in, taken out, all down
        "longer than one line",
        "\x1b[2J\x1b[2;2Hanew",
        "\x1bc",
    ):
        stream.feed(data.encode())
        assert screen.rows() == [line.rstrip() for line in screen.display], data
    stream.feed(b"\x1b[4;1Hlast")
    for lines, columns in ((2, 6), (5, 12)):
        screen.resize(lines, columns)
        assert screen.rows() == [line.rstrip() for line in screen.display]
        stream.feed(b"\x1b[1;1Hdrawn")
        assert screen.rows()[0].startswith("drawn") and screen.rows() == [line.rstrip() for line in screen.display]

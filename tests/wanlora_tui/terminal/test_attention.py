"""Bell and notifications: on a terminal, when a job ends while somebody looks, unless the user has muted them."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.settings import TerminalSettings, load_settings, settings_file
from daemon.wire.client import Client
from daemon.wire.protocol import JobRecord
from presets.errors import UserError
from tests.helpers import ROOT
from tests.helpers.hostile import HOSTILE, acts_on
from tests.helpers.interface.harness import environment, own_daemon, wanlora, write_job
from tests.helpers.terminal import Terminal
from wanlora_tui.feeds.ends import Ends
from wanlora_tui.terminal.attention import attention, wished

LOUD = TerminalSettings()


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("TMUX", "STY"):
        monkeypatch.delenv(name, raising=False)


def test_both_forms_and_the_bell():
    assert attention("wanlora", "orbit: done.", LOUD) == (
        "\x07\x1b]9;wanlora: orbit: done.\x07\x1b]777;notify;wanlora;orbit: done.\x07"
    )


def test_each_can_be_muted():
    assert attention("wanlora", "x", TerminalSettings(notify=False)) == "\x07"
    assert not attention("wanlora", "x", TerminalSettings(bell=False)).startswith("\x07")
    assert attention("wanlora", "x", TerminalSettings(bell=False, notify=False)) == ""


@pytest.mark.parametrize("term", ["linux", "vt100", "dumb"])
def test_consoles_that_would_print_it_only_ring(term: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", term)
    assert attention("wanlora", "x", LOUD) == "\x07"


def test_multiplexers_hand_it_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STY", "1.pts")
    assert "\x1bP\x1b]9;wanlora: x\x07\x1b\\" in attention("wanlora", "x", LOUD)
    monkeypatch.setenv("TMUX", "/tmp/none,1,0")
    assert "\x1bPtmux;\x1b\x1b]9;wanlora: x\x07\x1b\\" in attention("wanlora", "x", LOUD)


def test_no_text_breaks_out_of_it():
    said = attention("wanlora", f"one\ntwo; three {HOSTILE}", LOUD)
    assert said.count("\x1b") == 2 and said.count("\x07") == 3 and "\n" not in said
    assert "\x1b]777;notify;wanlora;one two, three <" in said
    assert len(attention("wanlora", "x" * 10_000, LOUD)) < 1000


def record(state: str, id: int = 1) -> JobRecord:
    return JobRecord(id=id, name="a", job_path="/a", out="/o", gpus=[0], state=state)  # type: ignore[arg-type]


def test_an_end_is_told_once_and_only_of_what_was_seen_before():
    ends = Ends()
    assert ends.fresh([record("done"), record("running", 2)]) == []
    assert [r.id for r in ends.fresh([record("done"), record("failed", 2)])] == [2]
    assert ends.fresh([record("done"), record("failed", 2)]) == []
    ends.fresh([record("queued", 2), record("running", 3)])
    assert [r.id for r in ends.fresh([record("done", 2), record("stopped", 3), record("done", 4)])] == [2]


def test_the_settings(tmp_path: Path):
    assert load_settings(settings_file(tmp_path)).terminal == LOUD == wished(tmp_path)[0]
    settings_file(tmp_path).write_text("[terminal]\nbell = false\n")
    assert wished(tmp_path) == (TerminalSettings(bell=False), "")
    settings_file(tmp_path).write_text('[terminal]\nbell = "loud"\n')
    assert wished(tmp_path)[0] == LOUD and "terminal.bell" in wished(tmp_path)[1]
    with pytest.raises(UserError, match=r"terminal\.bell"):
        load_settings(settings_file(tmp_path))


class Heard(Terminal):
    @property
    def called(self) -> bool:
        return b"\x1b]9;wanlora: " in self.raw and b"\x1b]777;notify;wanlora;" in self.raw


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with own_daemon() as folder:
        yield folder


def submit(folder: Path, job: Path) -> None:
    async def go() -> None:
        async with Client(folder) as client:
            await client.submit(job)

    asyncio.run(go())


def on_terminal(folder: Path, *args: str) -> Heard:
    command = [sys.executable, "-m", "wanlora_tui.cli", *args, "--dir", str(folder)]
    return Heard(command, cwd=ROOT, env=environment(), size=(120, 40))


@pytest.mark.parametrize("command", [["watch"], ["attach"], []], ids=["watch", "attach", "jobs"])
def test_it_calls_when_a_job_ends(folder: Path, tmp_path: Path, command: list[str]):
    name = f"calls_{'_'.join(command) or 'jobs'}"
    submit(folder, write_job(tmp_path, name, steps=100_000, pace_ms=50))
    terminal = on_terminal(folder, *command, *([name] if command else []))
    try:
        terminal.wait("high" if command != ["watch"] else "ETA")
        assert not terminal.called
        wanlora("set", name, "training.steps=1", "--dir", folder)
        terminal.wait(lambda _: terminal.called, "the call")
        assert f"]9;wanlora: {name}: ".encode() in terminal.raw
        if command != ["watch"]:
            terminal.press("q")
        terminal.wait_end()
        assert not acts_on(terminal.raw) and terminal.raw.count(b"\x1b]9;") == 1
    finally:
        terminal.close()


def test_it_is_silent_where_nobody_looks_or_it_is_muted(folder: Path, tmp_path: Path):
    job = write_job(tmp_path, "silent", steps=3)
    submit(folder, job)
    said = wanlora("watch", "silent", "--dir", folder)
    assert said.returncode == 0 and "\x07" not in said.stdout + said.stderr and "]9;" not in said.stdout + said.stderr
    terminal = on_terminal(folder, "watch", "silent")  # it has ended already
    try:
        assert terminal.wait_end() == 0 and b"\x07" not in terminal.raw
    finally:
        terminal.close()
    settings_file(folder).write_text("[terminal]\nbell = false\nnotify = false\n")
    submit(folder, write_job(tmp_path, "muted", steps=30, pace_ms=20))
    terminal = on_terminal(folder, "watch", "muted")
    try:
        assert terminal.wait_end() == 0 and b"\x07" not in terminal.raw and not terminal.called
    finally:
        terminal.close()
        settings_file(folder).unlink()

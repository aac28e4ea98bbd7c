"""Terminals as they are over SSH, mosh, screen, docker exec or a serial line: late, odd, silent, without a size; and
how they are left."""

import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from tests.helpers import NO_TORCH, ROOT
from tests.helpers.interface.harness import environment, own_daemon, until
from tests.helpers.terminal import Terminal
from tests.helpers.tiers import thorough
from wanlora_tui.terminal.conversation import CELL_SIZE, LATEST_SECONDS, PATIENCE_SECONDS, WHAT_ARE_YOU

WANLORA = f"{shlex.quote(sys.executable)} -m wanlora_tui.cli"
QUESTIONS = {  # what is asked -> how a terminal with everything answers
    WHAT_ARE_YOU: "\x1b[?62;4;22c",
    CELL_SIZE: "\x1b[6;20;10t",
    r"\x1b_Gi=31": "\x1b_Gi=31;OK\x1b\\",
    "\x1b[?2026$p": "\x1b[?2026;2$y",
    "\x1b[?2048$p": "\x1b[?2048;0$y",
}
ODD = {
    "no numbers": {WHAT_ARE_YOU: "\x1b[?c", CELL_SIZE: "\x1b[6;t"},
    "half an answer": {WHAT_ARE_YOU: "\x1b[?62;4;22c", CELL_SIZE: "\x1b[6;20"},
    "half an answer, the last": {WHAT_ARE_YOU: "\x1b[?62;4;2"},
    "words for numbers": {WHAT_ARE_YOU: "\x1b[?62;4;22c", CELL_SIZE: "\x1b[6;a;bt"},
    "a cell as large as a house": {WHAT_ARE_YOU: "\x1b[?62;4;22c", CELL_SIZE: "\x1b[6;20000;10000t"},
    "a cell of no size": {WHAT_ARE_YOU: "\x1b[?62;4;22c", CELL_SIZE: "\x1b[6;0;0t"},
    "more than was asked": {
        WHAT_ARE_YOU: "\x1b[>1;10;0c\x1b]11;rgb:1e1e/1e1e/1e1e\x1b\\\x1bP>|odd\x1b\\\x1b[?62;4;22c\x1b[?62;4;22c"
    },
    "a key that cannot be": {WHAT_ARE_YOU: "\x1b[99999999u\x1b[?62;4;22c"},
    "a key that is no number": {WHAT_ARE_YOU: "\x1b[?62;4;22c\x1b[:1u"},
    "a very long list": {WHAT_ARE_YOU: "\x1b[?65;" + ";".join(map(str, range(1, 60))) + "c"},
}

KINDS = ["a key that cannot be"]
FURTHER = [name for name in ODD if name not in KINDS]

# once the terminal is there: it has been given a size at its start
NO_SIZE = "echo ready; read line; stty rows 0 cols 0; "


class Answering(Terminal):
    """A terminal that answers `answers` so many seconds after it was asked."""

    def __init__(
        self,
        command: str,
        answers: Mapping[str, str],
        *,
        delay: float = 0.0,
        size: tuple[int, int] = (80, 24),
        **env: str,
    ) -> None:
        self.answers, self.delay = answers, delay
        self._seen = 0
        self._on_their_way: list[threading.Timer] = []
        super().__init__(["/bin/sh", "-c", command], size=size, cwd=ROOT, env=environment(**env))
        self._screen.answer = lambda data: None  # pyte's own

    def came(self, data: bytes) -> None:
        found = sorted(
            (m.start(), a)
            for q, a in self.answers.items()
            for m in re.finditer(re.escape(q.encode()), self.raw[self._seen :])
        )
        if found:
            self._seen = len(self.raw)
            timer = threading.Timer(self.delay, self._send, [b"".join(a.encode() for _, a in found)])
            self._on_their_way.append(timer)
            timer.start()

    def _send(self, answer: bytes) -> None:
        try:
            os.write(self.process.child_fd, answer)
        except OSError:  # the program has ended
            return

    def all_answered(self) -> None:
        """Wait until everything that was asked by now has been answered."""
        for timer in list(self._on_their_way):
            timer.join()

    def hang_up(self) -> None:
        self.process.ptyproc.fileobj.close()
        self.process.closed = True

    def close(self) -> None:
        super().close()
        self.all_answered()


class InBand(Answering):
    """It tells its size among the keys as well (mode 2048)."""

    def resize(self, columns: int, rows: int) -> None:
        super().resize(columns, rows)
        self._send(f"\x1b[48;{rows};{columns};{20 * rows};{10 * columns}t".encode())


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Of a daemon that nobody asks for anything but what it has."""
    with own_daemon() as folder:
        yield folder


@pytest.fixture
def open_terminal(folder: Path) -> Iterator[Callable[..., Answering]]:
    """`open_terminal(answers, delay=..., command=...)`: `command` with {wanlora} filled in, on a terminal of its
    own."""
    opened: list[Answering] = []

    def go(
        answers: Mapping[str, str],
        *,
        command: str = "exec {wanlora}",
        kind: type[Answering] = Answering,
        **options: object,
    ) -> Answering:
        opened.append(kind(command.format(wanlora=f"{WANLORA} --dir {folder}"), answers, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield go
    for terminal in opened:
        terminal.close()


def takes_no_answer_for_a_key(terminal: Answering) -> None:
    """One press opens the help: a stray question mark would have opened it before, and this one would close it."""
    terminal.wait("No jobs yet")
    terminal.all_answered()
    terminal.press("f1")
    terminal.wait("Open the wizard")
    terminal.press("escape")
    terminal.wait(lambda text: "Open the wizard" not in text and "No jobs yet" in text, "the screen behind the help")
    terminal.press("q")
    assert terminal.wait_end() == 0
    assert "Traceback" not in terminal.raw.decode(errors="replace")


@pytest.mark.parametrize("delay", [*thorough(0.0, 0.15), PATIENCE_SECONDS * 1.5])
def test_late_answers_are_no_keys(open_terminal: Callable[..., Answering], delay: float):
    takes_no_answer_for_a_key(open_terminal(QUESTIONS, delay=delay))


@pytest.mark.parametrize(
    "answers",
    [*(ODD[name] for name in KINDS), {}, *thorough(*(ODD[name] for name in FURTHER))],
    ids=[*KINDS, "none at all", *FURTHER],
)
def test_odd_answers_are_no_keys(open_terminal: Callable[..., Answering], answers: Mapping[str, str]):
    takes_no_answer_for_a_key(open_terminal(answers))


@pytest.mark.parametrize(
    "env",
    [
        *thorough({"TERM": "screen"}, {"TERM": "linux"}, {"TERM": "vt100"}),
        {"TERM": "screen-256color", "TMUX": "/tmp/none,1,0"},
        {"TERM": "xterm-kitty"},
    ],
)
def test_only_those_are_asked_for_kitty_s_pictures_that_may_have_them(
    open_terminal: Callable[..., Answering], env: dict[str, str]
):
    terminal = open_terminal(QUESTIONS, **env)
    takes_no_answer_for_a_key(terminal)
    assert (b"\x1b_G" in terminal.raw) == (env == {"TERM": "xterm-kitty"})


def test_a_terminal_without_a_size_is_taken_for_the_usual_one(open_terminal: Callable[..., Answering]):
    terminal = open_terminal(QUESTIONS, command=NO_SIZE + "exec {wanlora}")
    terminal.wait("ready")
    terminal.press("\r")
    takes_no_answer_for_a_key(terminal)


def test_sizes_that_are_told_among_the_keys_end_in_the_picture_of_the_last(open_terminal: Callable[..., Answering]):
    """Of two that follow each other at once the second is the one there was: what was cut off is there again."""
    told = {"\x1b[?2048$p": "\x1b[?2048;2$y", "\x1b[?2048h": "\x1b[48;24;80;480;800t"}
    terminal = open_terminal(QUESTIONS | told, kind=InBand, NO_COLOR="1")
    terminal.wait("No jobs yet")
    terminal.press("f1")
    whole = ("daemon alive", "Open the wizard", "Close")
    before = terminal.wait(lambda text: all(words in text for words in whole) and text, "the help")
    assert b"\x1b[?2048h" in terminal.raw
    for _ in range(2):
        terminal.resize(40, 12)
        terminal.resize(80, 24)
        terminal.wait(lambda text: text == before, "what was cut off")
        terminal.resize(100, 30)
        terminal.wait(lambda text: len(text.split("\n")) == 30 and text != before, "a larger one")
        terminal.resize(40, 12)
        terminal.resize(80, 24)
        terminal.wait(lambda text: text == before, "the same one again")


def test_keys_typed_ahead_are_not_lost_while_the_terminal_is_asked(open_terminal: Callable[..., Answering]):
    terminal = open_terminal(
        {WHAT_ARE_YOU: "x\x1b[?62;4;22cy"}, command="stty -echo; echo ready; read line; exec {wanlora}"
    )
    terminal.wait("ready")
    terminal.press("go\r", "f1")  # before there is anything to press it on
    terminal.wait("Open the wizard")


SHELL = "stty -g; {wanlora}; echo left $?; stty -g; exec cat -v"


def left_clean(terminal: Answering, code: int) -> None:
    """The shell is there again, with the modes that it had, and nothing comes to it but what is typed."""
    terminal.wait(f"left {code}")
    terminal.all_answered()
    terminal.press("typed afterwards\r")
    terminal.wait(lambda text: text.count("typed afterwards") == 2, "what cat says")
    modes = re.findall(rb"(?m)^[0-9a-f]+(?::[0-9a-f]+){10,}\r?$", terminal.raw)
    assert len(modes) == 2 and modes[0] == modes[1]
    after = terminal.raw.rpartition(b"left ")[2]
    assert b"^[" not in after and b"62;4" not in after and b"\x1b" not in after
    for off in (
        b"\x1b[?1049l",
        b"\x1b[?1000l",
        b"\x1b[?1003l",
        b"\x1b[?1006l",
        b"\x1b[?2004l",
        b"\x1b[?1004l",
        b"\x1b[?25h",
        b"\x1b[<u",
    ):
        assert off in terminal.raw, off


@pytest.mark.parametrize("delay", [*thorough(0.0, 0.3), LATEST_SECONDS * 0.6])
def test_nothing_is_left_on_the_shell_after_quitting_at_once(open_terminal: Callable[..., Answering], delay: float):
    terminal = open_terminal(QUESTIONS, delay=delay, command=SHELL)
    terminal.wait("No jobs yet")
    terminal.press("q")
    left_clean(terminal, 0)


@pytest.mark.parametrize("delay", [*thorough(0.3), PATIENCE_SECONDS * 1.5])
def test_doctor_leaves_nothing_on_the_shell_either(open_terminal: Callable[..., Answering], delay: float):
    terminal = open_terminal(
        {WHAT_ARE_YOU: "\x1b[?62;4;22c", CELL_SIZE: "\x1b[6;20;10t"},
        delay=delay,
        command=NO_SIZE + f"PYTHONPATH={NO_TORCH}:$PYTHONPATH {{wanlora}} doctor; exec cat -v",
    )
    terminal.wait("ready")
    terminal.press("\r")
    terminal.wait("previews are drawn with")
    terminal.wait(lambda text: re.search(r"(ok|warn|fail) +torch ", text), "the last line")
    terminal.all_answered()
    terminal.press("typed afterwards\r")
    terminal.wait(lambda text: text.count("typed afterwards") == 2, "what cat says")
    assert b"reports no size" in terminal.raw and b"^[" not in terminal.raw and b"62;4" not in terminal.raw


def interface_of(terminal: Answering) -> psutil.Process:
    return next(
        p
        for p in [psutil.Process(terminal.process.pid), *psutil.Process(terminal.process.pid).children(recursive=True)]
        if "wanlora_tui.cli" in p.cmdline() and "-c" not in p.cmdline()
    )


def wakings(process: psutil.Process) -> int:
    """Of all its threads but the first."""
    told = [
        re.search(
            r"^voluntary_ctxt_switches:\s*(\d+)", Path(f"/proc/{process.pid}/task/{t.id}/status").read_text(), re.M
        )
        for t in process.threads()
        if t.id != process.pid
    ]
    return sum(int(found[1]) for found in told if found)


def test_while_no_key_comes_nothing_looks_for_one(open_terminal: Callable[..., Answering]):
    """The reader waits. The rest are what is heard of the daemon and what is drawn, twice a second or so."""
    terminal = open_terminal(QUESTIONS)
    terminal.wait("No jobs yet")
    process = interface_of(terminal)

    def at_rest() -> bool:
        before = wakings(process)
        time.sleep(1.0)
        return wakings(process) - before < 8

    until(at_rest, "a second in which next to nothing woke")


@pytest.mark.parametrize("number", [signal.SIGTERM, *thorough(signal.SIGHUP)])
def test_told_to_end_it_gives_the_terminal_back(open_terminal: Callable[..., Answering], number: signal.Signals):
    terminal = open_terminal(QUESTIONS, command=SHELL)
    terminal.wait("No jobs yet")
    interface_of(terminal).send_signal(number)
    left_clean(terminal, 128 + number)


def test_it_ends_when_the_terminal_hangs_up(open_terminal: Callable[..., Answering]):
    terminal = open_terminal(QUESTIONS, command="trap '' HUP; {wanlora}; :")  # as under nohup: nobody is told
    terminal.wait("No jobs yet")
    interface = interface_of(terminal)
    terminal.hang_up()
    until(lambda: not interface.is_running() or interface.status() == psutil.STATUS_ZOMBIE, "the end of the interface")


def test_errors_in_a_file_leave_the_screens_on_the_terminal(open_terminal: Callable[..., Answering], tmp_path: Path):
    terminal = open_terminal(QUESTIONS, command=f"exec {{wanlora}} 2>{tmp_path}/errors")
    takes_no_answer_for_a_key(terminal)
    assert (tmp_path / "errors").read_text() == ""


@pytest.mark.parametrize("closed", ["<&-", ">&-", *thorough("</dev/null")])
def test_without_a_terminal_it_says_what_to_use(open_terminal: Callable[..., Answering], closed: str):
    terminal = open_terminal({}, command=f"exec {{wanlora}} {closed}")
    assert terminal.wait_end() == 1
    assert "this needs a terminal" in terminal.words and re.search(r"wanlora( --dir \S+)? jobs", terminal.words)


def modes(terminal: Answering) -> dict[int, str]:
    """Of those that screens turn on, and of the cursor: whether each was last turned on (h) or off (l)."""
    of_screens = {1049, 1000, 1003, 1006, 1004, 25}  # and 2004, which bash turns on for its prompt
    told = re.findall(rb"\x1b\[\?(\d+)([hl])", terminal.raw)
    return {int(number): how.decode() for number, how in told if int(number) in of_screens}


def test_ctrl_z_goes_to_the_shell_and_fg_comes_back(open_terminal: Callable[..., Answering], folder: Path):
    terminal = open_terminal(QUESTIONS, command="PS1='shell> ' exec bash --norc --noprofile -i")
    terminal.wait("shell>")
    terminal.press(f"{WANLORA} --dir {folder}\r")
    terminal.wait("No jobs yet")
    terminal.press("ctrl+z")
    terminal.wait("Stopped")
    assert modes(terminal) == {1049: "l", 1000: "l", 1003: "l", 1006: "l", 1004: "l", 25: "h"}
    terminal.press("echo the; echo shell\r")
    terminal.wait("the shell")
    terminal.press("fg\r")
    terminal.wait(
        lambda text: "No jobs yet" in text and "Quit" in text and "shell>" not in text, "the screen as it was"
    )
    assert modes(terminal) == {1049: "h", 1000: "h", 1003: "h", 1006: "h", 1004: "h", 25: "l"}
    terminal.click("? Help")
    terminal.wait("Open the wizard")
    terminal.press("escape")
    terminal.wait(lambda text: "Open the wizard" not in text and "No jobs yet" in text, "the screen behind the help")
    terminal.press("q")
    terminal.wait(lambda _: b"shell> " in terminal.raw.rpartition(b"\x1b[?1049l")[2], "the shell")


def test_ctrl_z_without_a_shell_to_go_to_says_so(open_terminal: Callable[..., Answering]):
    # the first program of its terminal, as after `ssh -t box wanlora` or `docker run -it`
    terminal = open_terminal(QUESTIONS)
    terminal.wait("No jobs yet")
    terminal.press("ctrl+z")
    terminal.wait("no shell to go back to")
    takes_no_answer_for_a_key(terminal)

"""What reaches a running trainer from outside: commands and signals. A command is a file in RUN/control, see
presets.runs.control; all but stop are carried out by engine.training.commands.

A stop is obeyed between two micro-batches: the gradients of the unfinished step are dropped. The others are applied
between two optimizer steps, where the state is whole: a save holds every step that is done, a new value counts from the
next step on. A file is deleted once its command is applied or refused. What was written while no trainer ran is found
by the next attempt and applied at its first step; a launcher removes stops that were meant for an attempt which has
ended.
"""

import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

from presets.errors import UserError
from presets.findings import Finding
from presets.runs.control import CONTROL_DIR, TrainerCommand, parse_control

POLL_SECONDS = 0.1  # while the trainer waits for something else


class StopRequested(Exception):
    """A stop was asked for, in the middle of something that leaves nothing behind."""


def refusal(what: str, error: UserError) -> Finding:
    """The finding that answers a command which cannot be applied."""
    return Finding(
        code="command-refused",
        severity="warning",
        field=error.where or CONTROL_DIR,
        message=f"{what} was refused: {error.what}",
        fix=error.fix or "Look at the command",
    )


class Control:
    """Polled between micro-batches. SIGTERM and SIGINT ask for a stop with a save; a second SIGINT, which is a person's
    Ctrl-C, ends at once, and says so on stderr.

    SIGTERM never ends at once, however often it comes: a scheduler sends it to the launcher and to the processes below
    it, again at the end of its time, and torchrun hands each on. What is being saved is saved; who cannot wait sends
    SIGKILL, which loses nothing that was saved before. Nor does SIGHUP, of a terminal that closes or a connection that
    drops: the kernel and the shell both send it. Where that is ignored, by nohup or the daemon, it stays so.
    """

    def __init__(self, folder: Path, *, tell: Callable[[Finding], None]) -> None:
        self._tell = tell  # is given the findings about files that hold no command
        self.folder = folder / CONTROL_DIR
        self._interrupts = 0
        self._launcher = 0  # the parent process, since `listen`
        self._waiting: dict[Path, TrainerCommand] = {}  # read, and neither applied nor refused yet
        self.why = ""  # why a stop is asked for; "" while none is
        self.polled: Callable[[], None] = _nobody  # is told each time: the trainer gets on

    def open(self) -> None:
        """Make the folder: the job is accepted, and commands may come."""
        self.folder.mkdir(exist_ok=True)

    def listen(self) -> None:
        """Install the signal handlers. Main thread only."""
        self._launcher = os.getppid()
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._on_hangup)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        name = signal.Signals(number).name
        if self._interrupts > 1:
            _say(f"wanlora: {name} received again: ended at once, without saving. Checkpoints saved before are whole")
            # as a kill would, which loses nothing; an exception out of nowhere could tear what is being written
            os._exit(128 + number)
        self.why = (
            f"{name} received"
            if os.getppid() == self._launcher
            else f"its launcher was killed or ended, then {name} received"
        )

    def _on_hangup(self, _number: int, _frame: FrameType | None) -> None:
        self.why = self.why or "SIGHUP received"

    def raise_if_stop_requested(self) -> None:
        """Raise StopRequested when a stop is asked for."""
        if self.stop_requested():
            raise StopRequested(self.why)

    def stop_requested(self) -> bool:
        """Read the control files; true once a stop is asked for."""
        self.polled()
        for file in sorted(self.folder.glob("*.json"), key=_written):
            if file in self._waiting:
                continue
            try:
                command = parse_control(file.read_bytes())
            except UserError as e:
                self._tell(refusal(file.name, e))
                file.unlink(missing_ok=True)
                continue
            except FileNotFoundError:  # the launcher took it back
                continue
            if command.command == "stop":
                self.why = "stopped on request"
                file.unlink(missing_ok=True)
            else:
                self._waiting[file] = command
        return bool(self.why)

    def waiting(self) -> list[tuple[Path, TrainerCommand]]:
        """The commands other than stop, oldest first. The caller reports each that it applied or refused to `done`."""
        self.stop_requested()
        return list(self._waiting.items())

    def done(self, file: Path) -> None:
        """A command is applied or refused: its file is deleted, so that no later attempt meets it again."""
        file.unlink(missing_ok=True)
        del self._waiting[file]

    def sleep(self, seconds: float) -> None:
        """Wait so long, or until a stop is asked for: then raises StopRequested."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.raise_if_stop_requested()
            time.sleep(POLL_SECONDS)


def _nobody() -> None:
    """Nobody listens."""


def _say(line: str) -> None:
    """Onto stderr past its buffers, which the interrupted code may be in the middle of; not onto a terminal or pipe
    that takes nothing just now."""
    with suppress(OSError):
        if select.select([], [2], [], 0)[1]:
            os.write(2, f"{line}\n".encode())


def _written(file: Path) -> tuple[int, str]:
    try:
        return file.stat().st_mtime_ns, file.name
    except FileNotFoundError:
        return 0, file.name

"""One attempt's processes: are they alive, end them, and what did they die of."""

import re
import signal
import subprocess
import time
from pathlib import Path

from daemon.processes import ProcessId, is_alive, marked, oom_kills, send
from daemon.queue import Entry, Verdict
from daemon.tail import Tail
from presets.text import sentences

ORPHAN_GRACE = 180.0  # seconds for a worker whose launcher died to save and stop
LOG_BYTES = 64 * 2**10
LOG_LINES = 12


class Trainer:
    """The launcher and everything it started. Processes are found by their marker: workers have their own sessions."""

    def __init__(self, launcher: ProcessId, marker: str, child: subprocess.Popen[bytes] | None = None) -> None:
        """`child` when this daemon is the launcher's parent; None for an adopted one."""
        self.launcher, self.marker = launcher, marker
        self.exit_code: int | None = None
        self._child = child
        self._asked: set[ProcessId] = set()
        self._orphaned_at = 0.0

    def poll(self) -> bool:
        """Whether anything of this trainer still runs. Workers left behind by their launcher are brought to an end,
        the topmost first, because it can save; what holds the GPUs is gone when this says False."""
        if self._child is not None:
            self.exit_code = self._child.poll()
            if self.exit_code is None:
                return True
        elif is_alive(self.launcher):
            return True
        rest = marked(self.marker)
        if not rest:
            return False
        self._orphaned_at = self._orphaned_at or time.monotonic()
        if time.monotonic() - self._orphaned_at > ORPHAN_GRACE:
            self.kill()
        elif rest[0] not in self._asked:
            self._asked.add(rest[0])
            send(rest[0], signal.SIGTERM)
        return True

    def terminate(self) -> None:
        """Ask it to save and go. The launcher hands the signal on to its workers."""
        send(self.launcher, signal.SIGTERM)

    def kill(self) -> None:
        """End all its processes now."""
        for process in [self.launcher, *marked(self.marker)]:
            send(process, signal.SIGKILL)


def last_word(entry: Entry, tail: Tail) -> Verdict | None:
    """What the trainer itself said its present attempt came to; None when it has not said anything yet."""
    word = tail.last_word
    if word is None or word.seq <= entry.first_seq:
        return None
    match word.kind:
        case "done":
            return Verdict("done")
        case "stopped":
            return Verdict("stopped", word.data["why"])
    return Verdict("failed", sentences(word.data['cause'], word.data['next']))


def verdict(entry: Entry, tail: Tail, *, exit_code: int | None, log: Path) -> Verdict:
    """What came of an attempt whose processes are gone: its own last word, or else what can be found out."""
    if said := last_word(entry, tail):
        return said
    code, lines = _read_log(log)
    code = exit_code if code is None else code
    at = f" after step {tail.view.step}" if tail.view.step else ""
    if code is None:
        cause = f"The trainer ended without a word{at}."
    elif code < 0:
        names = {number.value: number.name for number in signal.Signals}
        cause = f"The trainer was killed by {names.get(-code, f'signal {-code}')}{at}."
        if code == -signal.SIGKILL and oom_kills() > entry.oom_kills >= 0:
            cause += " The machine ran out of RAM and the kernel's out-of-memory killer was at work: close other programs, or choose a smaller precision in quantization.transformer."
        elif code == -signal.SIGKILL:
            cause += " If nobody did that by hand, a memory limit of the container or batch system is likely."
    else:
        cause = f"The trainer ended with exit code {code} and without a word{at}."
    end = "\n".join(["Its last lines:", *lines]) if lines else "Its log is empty."
    return Verdict("failed", f"{cause} Go on from the last checkpoint with: wanlora resume {entry.record.name}\n{end}\nAll of it: {log}")


def _read_log(log: Path) -> tuple[int | None, list[str]]:
    """The trainer's exit code as its launcher noted it (negative: a signal), and the trainer's own last lines."""
    try:
        with log.open("rb") as f:
            f.seek(max(0, log.stat().st_size - LOG_BYTES))
            text = f.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return None, []
    note = re.search(r"^.*torch/distributed/elastic/.*failed \(exitcode: (-?\d+)\)", text, re.MULTILINE)
    own = text[: note.start()] if note else text
    return int(note[1]) if note else None, [line for line in own.splitlines() if line.strip()][-LOG_LINES:]

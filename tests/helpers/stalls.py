"""Processes that stand still for some seconds at random moments: what a sleeping, swapping or crowded machine does to
them. tests.busy does it to the whole suite."""

import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers import ROOT

MARK = "WANLORA_STALLED"  # in the environment of all that may be stalled, and so of all that it starts
# The kinds of stalls, and how much of the time they take: a daemon that is stopped by a signal and gives no answer for
# 5 s is said to be so, which is right, and no matter of time.
KINDS = {"workers": 1.0, "what they started": 0.5, "all": 1.0}

# A process of its own, which outlives us however we end, and then ends all that carries the mark.
_ENDER = """
import sys
from tests.helpers.stalls import end_marked
sys.stdin.read()
end_marked(sys.argv[1])
"""


def marked(mark: str) -> dict[int, list[str]]:
    """Parent, state and command line, by pid, of all that carry the mark."""
    found, sign = {}, f"{MARK}={mark}".encode()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if sign in Path(entry.path, "environ").read_bytes().split(b"\0"):
                    state, parent = Path(entry.path, "stat").read_text().rpartition(")")[2].split()[:2]
                    command = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                    found[int(entry.name)] = [parent, state, command]
            except OSError:  # it has ended meanwhile, or is another user's
                continue
    return found


def end_marked(mark: str) -> None:
    while pids := [pid for pid, (_, state, _) in marked(mark).items() if state not in "ZX"]:
        for pid in pids:
            _send(pid, signal.SIGKILL)  # a stopped one dies of it too


def _send(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def ending_all() -> Iterator[str]:
    """Gives a mark, and ends all that carry it when the block, or this process, has ended."""
    mark = str(os.getpid())
    ender = subprocess.Popen(
        [sys.executable, "-c", _ENDER, mark], stdin=subprocess.PIPE, start_new_session=True, cwd=ROOT
    )
    try:
        yield mark
    finally:
        assert ender.stdin is not None
        ender.stdin.close()
        ender.wait()


class Stalls:
    """Stalls the suite with this pid for `seconds` again and again, `every` so many seconds on average: its workers,
    what they have started, or all."""

    def __init__(self, suite: int, mark: str, seconds: float, every: float, seed: int) -> None:
        self._suite, self._mark, self._seconds, self._every, self._seed = suite, mark, seconds, every, seed
        self._counts: Counter[str] = Counter()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __str__(self) -> str:
        """What has been done, with the seed that does it again (not at the very same moments)."""
        kinds = ", ".join(f"{self._counts[kind]} of {kind}" for kind in KINDS)
        return f"{self._counts.total()} stalls of {self._seconds:g} s ({kinds}; seed {self._seed})"

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        draws = random.Random(self._seed)
        while not self._over.wait(draws.expovariate(1 / self._every)):
            kind = draws.choice(list(KINDS))
            self._counts[kind] += self._stall(self._of(kind), KINDS[kind] * self._seconds)

    def _of(self, kind: str) -> Callable[[int, str, str], bool]:
        def is_worker(pid: int, parent: str, command: str) -> bool:
            return "exec(eval(" in command and parent == str(self._suite)  # execnet's, which xdist starts

        alone = not any(is_worker(pid, parent, command) for pid, (parent, _, command) in marked(self._mark).items())
        return {
            "workers": lambda *of: is_worker(*of) or (alone and of[0] == self._suite),
            "what they started": lambda *of: not is_worker(*of) and of[0] != self._suite,
            "all": lambda *of: True,
        }[kind]

    def _stall(self, concerned: Callable[[int, str, str], bool], seconds: float) -> bool:
        """Whether there was one to be stalled. One that a test has stopped stays so."""
        stopped = [
            pid
            for pid, (parent, state, command) in marked(self._mark).items()
            if state not in "TtZX" and concerned(pid, parent, command) and _send(pid, signal.SIGSTOP)
        ]
        if stopped:
            self._over.wait(seconds)
        for pid in set(stopped) & marked(self._mark).keys():  # not another one that has got its number
            _send(pid, signal.SIGCONT)
        return bool(stopped)

"""Guards against what a test leaves behind: threads, descriptors, processes, folders of daemons. As in dask's test kit,
every test that starts a daemon is looked at before and after."""

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from daemon.wire import start
from tests.helpers.waiting import PATIENCE, between_looks

# in the environment of this process, and so of all that it starts, however they detach themselves
MARK = "WANLORA_TESTS"
DAEMONS = frozenset({"Box", "own_daemon", "running_daemon", "ensure_running", "end_daemon", "serve"})

os.environ[MARK] = str(os.getpid())
_made: list[Path] = []  # folders that mkdtemp has made in this process
_kept: dict[str, int] = {}  # process -> its descriptor: what serves all tests, and ends with this process


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if event == "tempfile.mkdtemp" and Path(args[0]).name.startswith("wl"):
        _made.append(Path(args[0]))


sys.addaudithook(_hear)


def keep(pid: int, descriptor: int) -> None:
    """A process that the tests of this one share, and the descriptor that it is reached by: whichever test needs it
    first leaves them behind."""
    _kept[str(pid)] = descriptor


def keep_no_more(pid: int) -> None:
    """It has ended before this process has."""
    _kept.pop(str(pid), None)


def _threads() -> dict[str, str]:
    return {str(t.ident): f"thread {t.name}" for t in threading.enumerate() if t.is_alive()}


def _descriptors() -> dict[str, str]:
    found = {}
    for entry in list(Path("/proc/self/fd").iterdir()):
        if int(entry.name) in _kept.values():
            continue
        try:
            target = entry.readlink()
        except OSError:  # the one that listed them
            continue
        found[f"{entry.name} {target}"] = f"descriptor {entry.name}, {target}"
    return found


def _processes() -> dict[str, str]:
    """All that carry our mark, and our children: one that was started with another environment has no mark, nor has one
    that has not come to its program yet, and a zombie has no environment any more. Such a child of an earlier test may
    end while another test runs, and is none of that one's."""
    mark, me, found = f"{MARK}={os.getpid()}".encode(), str(os.getpid()), {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or entry.name == me or entry.name in _kept:
            continue
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            ours, zombie = parent == me, state == "Z"
            if ours or (not zombie and mark in (entry / "environ").read_bytes().split(b"\0")):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
                found[entry.name] = f"process {entry.name}{' (a zombie)' if zombie else ''}: {command[:200]}"
        except OSError:  # it has ended meanwhile, or is another user's
            continue
    return found


def _folders() -> dict[str, str]:
    return {str(path): f"folder {path}" for path in _made if path.exists()}


def _footprint() -> dict[str, str]:
    return {
        f"{look.__name__} {key}": words
        for look in (_threads, _descriptors, _processes, _folders)
        for key, words in look().items()
    }


def leaked(before: dict[str, str], patience: float = PATIENCE) -> list[str]:
    """What is there that was not, once it has had the time to end."""
    end = time.monotonic() + patience
    while True:
        began = time.monotonic()
        left = [words for key, words in _footprint().items() if key not in before]
        if not left or began > end:
            return left
        gc.collect()
        subprocess._cleanup()  # what nobody holds any more: Python reaps it when it next starts a process
        for daemon in start._started:  # which a client does not wait for: its own parent reaps them
            daemon.poll()
        time.sleep(between_looks(began))


@contextmanager
def guarded(patience: float = PATIENCE) -> Iterator[None]:
    """Fails when more is left after it than was there before."""
    before = _footprint()
    yield
    left = leaked(before, patience)
    assert not left, "the test leaves behind:\n  " + "\n  ".join(left)

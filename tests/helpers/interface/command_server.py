"""A process that has imported what `wanlora` imports, and forks for each command: `-m ... command_server SOCKET` with
an inherited socket, of which tests.helpers.interface.commands holds the other end. It ends with that.

A request is a byte with six descriptors: standard input, output and error, the working folder, a socket for what is
told of the command, and a file with the rest. Told are two lines: its pid, and later its exit code as
`subprocess.Popen.returncode` has it. The command itself ends as any Python program does.
"""

import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

PACKAGES = ("wanlora_tui", "presets", "daemon")
LOOK = 5.0  # seconds until it is noticed that the tests have died while something else holds their end of the socket


@contextmanager
def _noting_reads(names: set[str]) -> Iterator[None]:
    """Which variables of the environment are read meanwhile."""
    kind: Any = type(os.environ)
    get = kind.__getitem__

    def noted(self: Any, name: str) -> str:
        names.add(name)
        value: str = get(self, name)
        return value

    kind.__getitem__ = noted
    try:
        yield
    finally:
        kind.__getitem__ = get


def _import_all() -> None:
    for name in PACKAGES:
        for found in pkgutil.walk_packages(importlib.import_module(name).__path__, f"{name}."):
            if not found.name.endswith("__main__"):
                importlib.import_module(found.name)


def _serve(control: socket.socket) -> Callable[[], object]:
    """Returns in the processes of commands only."""
    parent = os.getppid()
    woken, waker = socket.socketpair()
    for end in (woken, waker):
        end.setblocking(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the tests
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    running: dict[int, socket.socket] = {}
    while os.getppid() == parent:
        ready = select.select([control, woken], [], [], LOOK)[0]
        if woken in ready:
            woken.recv(4096)
        for pid, told in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                _tell(told, os.waitstatus_to_exitcode(status))
                running.pop(pid).close()
        if control not in ready:
            continue
        data, given, _, _ = socket.recv_fds(control, 1, 6)
        if not data:
            break
        told = socket.socket(fileno=given[4])
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        if not (pid := os.fork()):
            for open_here in (control, woken, waker, told, *running.values()):
                open_here.close()
            return _become(given[:4], given[5], before)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _tell(told, pid)
        running[pid] = told
        for fd in (*given[:4], given[5]):
            os.close(fd)
    os._exit(0)


def _tell(told: socket.socket, number: int) -> None:
    with suppress(OSError):  # who asked has gone
        told.sendall(f"{number}\n".encode())


def _become(given: list[int], request: int, mask: set[Any]) -> Callable[[], object]:
    """This process is the command now, but for its signals: they have waited for that, and come when it begins."""
    with open(request, "rb") as file:
        asked = json.loads(file.read())
    os.fchdir(given[3])
    for number, fd in enumerate(given[:3]):
        os.dup2(fd, number)
    for fd in given:
        os.close(fd)
    os.environ.clear()
    os.environ.update(asked["environment"])
    time.tzset()
    tempfile.tempdir = None  # of another environment
    sys.path[:] = asked["path"]
    _make_streams()
    module, _, name = asked["main"].partition(":")
    main: Callable[[], object] = getattr(importlib.import_module(module), name)
    file_name = str(sys.modules[module].__file__)
    sys.argv[:] = [file_name, *asked["arguments"]]
    sys.orig_argv[:] = [sys.executable, "-m", module, *asked["arguments"]]
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def run() -> object:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return main()

    return run


def _make_streams() -> None:
    """Python's standard streams over what lies at their descriptors now."""
    for fd, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        old = getattr(sys, name)
        new: Any = open(  # noqa: SIM115  (a descriptor, as long as the program)
            fd, mode, encoding=old.encoding, errors=old.errors, newline="\n" if fd else None, closefd=False
        )
        new.buffer.raw.name = f"<{name}>"
        if name == "stderr":
            new.reconfigure(line_buffering=True)
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def main() -> None:
    control, read = socket.socket(fileno=int(sys.argv[1])), set[str]()
    with _noting_reads(read):
        _import_all()
    threads = os.listdir("/proc/self/task")  # noqa: PTH208
    assert len(threads) == 1, f"the imports have started threads, which no fork has: {threads}"
    assert "pynvml" not in sys.modules, "a test that has no GPUs puts another one in its place"
    control.sendall(json.dumps({"read": sorted(read), "path": sys.path}).encode() + b"\n")
    gc.collect()
    gc.freeze()
    sys.exit(_serve(control)())  # type: ignore[arg-type]  (whatever the command's main gives)


if __name__ == "__main__":
    main()

"""`wanlora` commands of tests, forked by a process that has imported all of it
(tests.helpers.interface.command_server): each of them would take half a second of a core for that.

A command has the arguments, folder, environment and standard streams that it is given, an exit code, and may be
signalled. What Python itself, or a module as it is imported, takes from its environment or its parent cannot be given
to a process that runs already: where any of that differs from the server's, `run()` starts a Python of the command's
own (`own_start()` names it). Tests about starting (imports, `python -m`, encodings, closed streams, terminals) start
their processes themselves.
"""

import json
import locale
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.helpers import NO_GPUS, NO_TORCH, ROOT, leaks

MAIN = "wanlora_tui.cli:main"
READ_BY_PYTHON = ("PYTHON", "LANG", "LC_", "LD_", "MALLOC_", "GLIBC_", "OMP_", "OPENBLAS_", "MKL_")
READ_LATER = {"PYTHONPATH", "PYTHON_COLORS"}  # the first is told apart, the second read by what is about to print
_ENVIRONMENT = dict(os.environ)  # of no test: one's own may be gone when the next one runs
# that PYTHONPATH may name: they change no module that the server has imported
PATHS = {str(ROOT), str(NO_GPUS), str(NO_TORCH), *_ENVIRONMENT.get("PYTHONPATH", "").split(os.pathsep)}


class ServerDied(AssertionError):
    """The process that forks commands is not there any more."""


class Command:
    """A command that runs: what tests need of subprocess.Popen."""

    def __init__(self, server: "Server", request: Mapping[str, Any], streams: tuple[int, int, int], cwd: Path) -> None:
        """Raises OSError when the folder cannot be entered, ServerDied."""
        self.args, self.returncode = request["arguments"], None
        self._server = server
        here, there = socket.socketpair()
        self._told, self._lines = here, b""
        folder = -1
        try:
            folder = os.open(cwd, os.O_RDONLY | os.O_DIRECTORY)
            with tempfile.TemporaryFile() as file:
                file.write(json.dumps(request).encode())
                file.seek(0)  # the descriptor that is passed on has the same place
                server.send([*streams, folder, there.fileno(), file.fileno()])
            there.close()  # before its pid is awaited: a server that dies is to be seen
            self.pid = self._next(None)
        except BaseException:
            here.close()
            raise
        finally:
            there.close()
            if folder >= 0:
                os.close(folder)

    returncode: int | None

    def _next(self, end: float | None) -> int:
        """The next number that is told. Raises ServerDied; TimeoutError at `end`."""
        while b"\n" not in self._lines:
            self._told.settimeout(None if end is None else max(end - time.monotonic(), 1e-6))
            try:
                data = self._told.recv(4096)
            except BlockingIOError:
                raise TimeoutError from None
            if not data:
                raise ServerDied(f"the server of commands has died under {self.args}: {self._server.end()}")
            self._lines += data
        number, _, self._lines = self._lines.partition(b"\n")
        return int(number)

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired, ServerDied."""
        if self.returncode is None:
            try:
                self.returncode = self._next(None if timeout is None else time.monotonic() + timeout)
            except TimeoutError:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0) from None
            self._told.close()
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        """Nothing where it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # in this moment
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class Server:
    """The process that forks, and our end of its socket."""

    def __init__(self) -> None:
        self._control, there = socket.socketpair()
        self.inherited = _inherited()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.interface.command_server", str(there.fileno())],
            cwd=ROOT,
            env=_ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(ROOT), *_path(_ENVIRONMENT)])},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[there.fileno()],
        )
        there.close()
        leaks.keep(self._process.pid, self._control.fileno())
        with self._control.makefile("rb") as file:
            said = file.readline()
        if not said:
            raise ServerDied(f"the server of commands has not started: {self.end()}")
        told = json.loads(said)
        self._read: list[str] = told["read"]
        self._path = [place for place in told["path"] if place not in {str(ROOT), *_path(_ENVIRONMENT)}]

    def send(self, descriptors: list[int]) -> None:
        try:
            socket.send_fds(self._control, [b"\0"], descriptors)
        except OSError as e:
            raise ServerDied(f"the server of commands does not take any: {e}; {self.end()}") from e

    def end(self) -> str:
        """End it, and say how it has ended. Its error, if any, is in what the test has captured."""
        leaks.keep_no_more(self._process.pid)
        self._control.close()
        return f"its exit code is {self._process.wait()}"

    def own_start(self, environment: Mapping[str, str]) -> str:
        """Why a command with this environment needs a Python of its own; "" where it does not."""
        if self.inherited != (now := _inherited()):
            return f"a process gets other things of this one than it did: {now}, no longer {self.inherited}"
        for name in sorted({*_ENVIRONMENT, *environment}):
            by_python = name.startswith(READ_BY_PYTHON) and name not in READ_LATER
            if (by_python or name in self._read) and environment.get(name) != _ENVIRONMENT.get(name):
                return f"{name} is another one"
        if other := set(_path(environment)) - PATHS:
            return f"PYTHONPATH names {sorted(other)}"
        return ""

    def start(
        self,
        arguments: list[str],
        *,
        cwd: Path,
        environment: Mapping[str, str],
        streams: tuple[int, int, int] = (0, 1, 2),
        main: str = MAIN,
    ) -> Command:
        """As `python -m` would, in `cwd`."""
        path = [str(cwd), *_path(environment), *self._path]
        request = {"main": main, "arguments": arguments, "environment": dict(environment), "path": path}
        return Command(self, request, streams, cwd)


def _path(environment: Mapping[str, str]) -> list[str]:
    return list(filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)))


def _inherited() -> tuple[object, ...]:
    """What a process has from its parent and keeps, other than what a request says."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    limits = [resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")]
    return (
        *(status[name].strip() for name in ("Umask", "SigIgn", "SigBlk", "Uid", "Gid", "Groups", "NoNewPrivs")),
        tuple(limits),
        tuple(sorted(os.sched_getaffinity(0))),
        os.getpriority(os.PRIO_PROCESS, 0),
        os.getpgrp(),
    )


_servers: dict[int, Server] = {}  # by process: a fork has none yet
_starting = threading.Lock()


def the_server() -> Server:
    """That of this process, started when it is first needed. It ends with this process."""
    with _starting:
        if os.getpid() not in _servers:
            _servers[os.getpid()] = Server()
        return _servers[os.getpid()]


def run(
    arguments: list[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    timeout: float,
    main: str = MAIN,
    server: Server | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end, as subprocess.run does, and give what it said. Raises subprocess.TimeoutExpired (the
    command is killed), ServerDied."""
    server = server or the_server()
    if server.own_start(environment):
        command = [sys.executable, "-m", main.partition(":")[0], *arguments]
        return subprocess.run(
            command, cwd=cwd, env=dict(environment), capture_output=True, text=True, timeout=timeout, check=False
        )
    end = time.monotonic() + timeout
    (out, out_there), (err, err_there) = os.pipe(), os.pipe()
    try:
        try:
            started = server.start(
                arguments, cwd=cwd, environment=environment, streams=(0, out_there, err_there), main=main
            )
        finally:
            os.close(out_there)
            os.close(err_there)
        try:
            said = _read_to_the_end([out, err], end)
            code = started.wait(max(end - time.monotonic(), 0))
        except TimeoutError:
            raise subprocess.TimeoutExpired(arguments, timeout) from None
        finally:
            if started.poll() is None:
                started.kill()
                started.wait()
    finally:
        os.close(out)
        os.close(err)
    return subprocess.CompletedProcess(arguments, code, *map(_text, said))


def _read_to_the_end(pipes: list[int], end: float) -> list[bytes]:
    """Raises TimeoutError."""
    said = dict.fromkeys(pipes, b"")
    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(end - time.monotonic(), 0))
            if not ready and time.monotonic() > end:
                raise TimeoutError
            for key, _ in ready:
                data = os.read(key.fd, 2**16)
                said[key.fd] += data
                if not data:
                    selector.unregister(key.fd)
    return [said[pipe] for pipe in pipes]


def _text(data: bytes) -> str:
    return data.decode(locale.getencoding()).replace("\r\n", "\n").replace("\r", "\n")

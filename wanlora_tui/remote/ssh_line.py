"""One ssh process that is the master of a connection: dialled, asked whether it still answers, ended.

Which of them is in use, and when another is dialled, is wanlora_tui.remote.connection's.
"""

import math
import os
import re
import select
import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from presets.errors import UserError
from wanlora_tui.remote.far_shell import for_any_shell, harmless, new_mark

DIAL_SECONDS = 15  # for the network's part of a new connection, not for a person who is asked
ORDER_SECONDS = 15.0  # for the master, on this machine, to do what it is told
FORWARD_REFUSED = "open failed"  # stands in what the master says when somebody comes to a socket that leads nowhere
SHELL_SECONDS = 60.0  # after ssh was let in, for the shell there to begin
LAST_WORDS, LONGEST_WORDS = 20, 4096  # lines, and bytes of one of them, that are kept
LAST_SECONDS = 0.5  # in which ssh ends by itself, or when it is told to
# what follows it ends when we do
_WITH_US = [sys.executable, "-I", "-S", str(Path(__file__).with_name("death_signal.py"))]
# The user's configuration counts (names, ports, keys, jumps), except where it would break a connection of our own:
# another master, forwards that are open already, a command. ssh itself gives up on a line after 20 s without a packet.
_MASTER = {
    "ControlMaster": "yes",
    "ControlPersist": "no",
    "ClearAllForwardings": "yes",
    "ConnectTimeout": str(DIAL_SECONDS),
    "ConnectionAttempts": "1",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "LogLevel": "INFO",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "StreamLocalBindUnlink": "yes",
}
_SILENT = {"BatchMode": "yes", "ConnectTimeout": "8"}  # it is soon tried again, maybe on a better network
_ASKPASS = Path(__file__).with_name("askpass.py")
_MARK = "\x05"  # around a question; `harmless` leaves it out
_QUESTION = re.compile(f"{_MARK}[^{_MARK}]*{_MARK}".encode())
_CLIENT = {"ControlMaster": "no", "ProxyCommand": "false", "LogLevel": "ERROR"}


def asking(folder: Path) -> dict[str, str]:
    """What lets ssh ask in the order in which it speaks. Left to itself it asks on the terminal at once, while what it
    has said before is still on its way through us. Nothing where it cannot ask, or asks as the user has arranged it;
    an ssh before 8.4 does not know it.

    `folder`: a private one.
    """
    if "SSH_ASKPASS_REQUIRE" in os.environ:
        return {}
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return {}
    program = folder / "askpass"
    program.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-I", "-S", str(_ASKPASS), _MARK])} "$@"\n')
    program.chmod(0o700)
    if not os.access(program, os.X_OK):  # the folder is on a disk that runs nothing
        return {}
    return {"SSH_ASKPASS": str(program), "SSH_ASKPASS_REQUIRE": "force"}


def options(given: dict[str, str]) -> list[str]:
    return [part for name, value in given.items() for part in ("-o", f"{name}={value}")]


class SshLine:
    """The master, with a session in which `cat` answers what it is sent: that goes all the way there and back, which no
    question to the master does, and ends there when nobody holds this end any more."""

    def __init__(self, host: str, socket: Path, *, ask: bool) -> None:
        """`ask`: ssh may ask questions on the terminal. Else it asks nothing and cannot: it has no terminal."""
        self.host, self.socket, self._ask = host, socket, ask
        self.words: deque[str] = deque(maxlen=LAST_WORDS)  # lines that ssh has said
        self.is_up = self._is_over = False
        self.refused_forward = False  # somebody came to a forwarded socket that leads nowhere
        self._mark, self._heard, self._said = new_mark().encode(), b"", b""
        self._forwards: dict[Path, str] = {}
        self.echoed = 0  # bytes
        given = _MASTER if ask else _MASTER | _SILENT
        # never: a jump host's ssh knows no BatchMode
        asks = asking(socket.parent) if ask else {"SSH_ASKPASS_REQUIRE": "never"}
        answer = for_any_shell(f"printf '\\n%s\\n' {self._mark.decode()}; exec cat")
        self.process = subprocess.Popen(
            [*_WITH_US, str(os.getpid()), "ssh", "-T", "-S", str(socket), *options(given), "--", host, answer],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | asks,
            bufsize=0,
            start_new_session=not ask,
        )
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)

    @property
    def has_ended(self) -> bool:
        """Its session is over; the process may be about to end."""
        return self._is_over or self.process.poll() is not None

    def dial(self, given_up: Callable[[], bool]) -> bool:
        """Wait until it is up, however long a person is asked; whether it is."""
        until = math.inf
        while not self.is_up and not self.has_ended and not given_up():
            self.listen(0.1)
            if until == math.inf and self.socket.exists():  # ssh has been let in
                until = time.monotonic() + SHELL_SECONDS
            if time.monotonic() > until:
                self.words.append(f"logged in, but no shell has begun there for {SHELL_SECONDS:.0f} s")
                break
        if not self.is_up:
            self.close()
        return self.is_up

    def listen(self, seconds: float) -> None:
        """Take in what comes within that time, and return after the first of it."""
        assert self.process.stdout is not None and self.process.stderr is not None
        out, err = self.process.stdout.fileno(), self.process.stderr.fileno()
        ready = select.select([out, err], [], [], seconds)[0]
        if err in ready and (data := _read(err)):
            self._take_words(data)
        if out in ready:
            data = _read(out)
            if not data:
                self._is_over = True
            elif self.is_up:
                self.echoed += len(data)
            else:
                self._heard = (self._heard + data)[-4096:]
                if self._mark + b"\n" in self._heard:
                    self.is_up = True
                    self.words.clear()  # what was said on the way here

    def _take_words(self, data: bytes) -> None:
        text = harmless(data.decode("utf-8", "replace"))
        if self._ask and not self.is_up:
            sys.stderr.write(text)
            sys.stderr.flush()
        *lines, rest = _QUESTION.sub(b"", self._said + data).split(b"\n")
        self._said = rest[:LONGEST_WORDS]
        for line in lines:
            words = harmless(line[:LONGEST_WORDS].decode("utf-8", "replace")).strip()
            if FORWARD_REFUSED in words:
                self.refused_forward = True
            if words:
                self.words.append(words)

    def ping(self) -> None:
        """Send a byte, which should come back."""
        assert self.process.stdin is not None
        with suppress(OSError):  # full, or closed: nothing comes back then
            os.write(self.process.stdin.fileno(), b".")

    @property
    def received(self) -> int:
        """Bytes that ssh has read so far, from the network above all. 0 where the system does not tell."""
        try:
            facts = Path(f"/proc/{self.process.pid}/io").read_text()
        except OSError:
            return 0
        return int(facts.partition("rchar:")[2].split(None, 1)[0])

    @property
    def last_words(self) -> str:
        return self.words[-1] if self.words else ""

    def forward(self, local: Path, remote: str) -> None:
        """Bring a socket of that machine here, instead of what came there. Raises UserError."""
        before = self._forwards.get(local)
        if before != remote:
            if before is not None:
                self._order("cancel", local, before)
            self._order("forward", local, remote)
            self._forwards[local] = remote

    def _order(self, order: str, local: Path, remote: str) -> None:
        where = ":".join(str(path).replace("\\", "\\\\").replace(":", "\\:") for path in (local, remote))
        try:
            done = subprocess.run(
                [*self.client(), "-O", order, "-L", where, "--", self.host],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=ORDER_SECONDS,
                check=False,
            )
            words = "; ".join(line.strip() for line in harmless(done.stderr).splitlines() if line.strip())
            problem = words or f"ssh -O {order} failed" if done.returncode else ""
        except subprocess.TimeoutExpired:
            problem = "ssh does not answer on this machine"
        if problem:
            raise UserError(problem, where=self.host, fix=f"Try: ssh {self.host}")

    def client(self) -> list[str]:
        """ssh as a client of this master, which never makes a connection of its own."""
        return ["ssh", "-F", "/dev/null", "-S", str(self.socket), *options(_CLIENT)]

    def session(self, script: str, *flags: str) -> list[str]:
        """The command that runs a script there."""
        return [*self.client(), *flags, "--", self.host, for_any_shell(script)]

    def close(self) -> None:
        """End it, and wait for that. Sessions and forwards over it end with it."""
        if not self._ends_within(LAST_SECONDS if self._is_over else 0.0):
            self.process.terminate()
            if not self._ends_within(LAST_SECONDS):
                self.process.kill()
                self.process.wait()
        assert self.process.stderr is not None and self.process.stdout is not None and self.process.stdin is not None
        if not self.process.stderr.closed:
            if data := _read(self.process.stderr.fileno()):
                self._take_words(data + b"\n")
            for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
                pipe.close()
        self.socket.unlink(missing_ok=True)

    def _ends_within(self, seconds: float) -> bool:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.returncode is not None


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 2**16)
    except BlockingIOError:
        return b""

"""A lock for each GPU of this machine, so that two daemons, or a daemon and a trainer without one, never share a GPU
unknowingly, whoever their users are. Who computes there besides is presets.machine.gpus's.

It is the name of a socket in Linux's abstract namespace, which one process can have at a time and which goes with the
last process that has the socket: a trainer inherits it, so it outlives the daemon with the trainer. No file lies
anywhere, so none is left over, planted, or swept away after ten days. Containers with a network of their own have names
of their own; what they do to a GPU is seen in its memory only.
"""

import os
import pwd
import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

PREFIX = "wanlora-gpu"
LOCKABLE = ("GPU-", "MIG-")  # a number may mean another GPU elsewhere
NAME_BYTES = 107
SOCKETS = Path("/proc/net/unix")


class GpuLock:
    """Some GPUs, held until `close` and for as long as a process lives that was given the `descriptors`."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    @property
    def descriptors(self) -> list[int]:
        return [s.fileno() for s in self._sockets]

    def take(self, gpu: str, what: str) -> bool:
        """Whether it could be had. `what` it is for: one word that others are shown, with the user and the pid."""
        if not _bind(self._sockets, f"{PREFIX}/{gpu}"):
            return False
        words = (user_name(os.getuid()), str(os.getpid()), what)
        name = "/".join([PREFIX, gpu, *(re.sub(r"[^\w.-]", "_", word, flags=re.ASCII) for word in words)])
        _bind(self._sockets, name[:NAME_BYTES])
        return True

    def leave_to_exec(self) -> None:
        """The program that this process becomes by exec holds them until it ends."""
        for s in self._sockets:
            os.set_inheritable(s.detach(), True)
        self._sockets.clear()

    def close(self) -> None:
        for s in self._sockets:
            s.close()
        self._sockets.clear()


def lock_gpus(gpus: Iterable[str], what: str) -> tuple[GpuLock, list[str]]:
    """The lock of those that can be had, and the others. A GPU that only has a number is passed over."""
    lock = GpuLock()
    return lock, [gpu for gpu in gpus if gpu.startswith(LOCKABLE) and not lock.take(gpu, what)]


def holder_of(gpu: str) -> str:
    """Who holds a GPU's lock, for people; "" when nobody does."""
    names = []
    with suppress(OSError):
        names = [
            line.split()[-1] for line in SOCKETS.read_text("utf-8", "replace").splitlines() if f"@{PREFIX}/" in line
        ]
    if f"@{PREFIX}/{gpu}" not in names:
        return ""
    for name in names:
        if name.startswith(f"@{PREFIX}/{gpu}/") and len(parts := name.split("/")) == 5:
            return f"{parts[4]} (user {parts[2]}, pid {parts[3]})"
    return "another program"


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _bind(sockets: list[socket.socket], name: str) -> bool:
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        s.bind(b"\0" + name.encode())
    except OSError:  # taken
        s.close()
        return False
    sockets.append(s)
    return True

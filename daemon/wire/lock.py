"""The lock in the state folder: held by the one daemon there, it says to every client who that is and where its sockets
are.

Clients of any version and any environment (another XDG_RUNTIME_DIR or TMPDIR: su, cron, sudo, a batch system) follow
it. Its form is the same in every version:

- the pid in the first 32 bytes, filled up with blanks and a newline: that much is all there was in versions up to
  0.1.0;
- then one line of JSON, a `Holder`. Keys of a newer version are passed over, keys that an older one did not write are
  empty.

That it lies there says nothing: a daemon runs while somebody holds an exclusive flock on it.
"""

import errno
import fcntl
import os
import pwd
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from daemon.errors import DaemonError
from daemon.processes.proc import ProcessId, identify, is_alive, state_of
from daemon.wire.paths import DaemonPaths, make_private
from daemon.wire.protocol import PROTOCOL_VERSION
from presets import VERSION
from presets.errors import UserError

PID_BYTES = 32
MAX_BYTES = 16 * 2**10
PATIENCE = 5.0  # seconds for which clients that look at the lock may be in a daemon's way


class LockHolder(Struct, frozen=True, kw_only=True):
    """Who holds the lock. Of a daemon up to 0.1.0 only the pid is known."""

    pid: int
    start: int = 0  # with `boot`: the process itself, and no later one with the same pid (see ProcessId)
    boot: str = ""
    host: str = ""
    started: float = 0.0  # wall clock
    runtime: str = ""  # folder of its sockets; "" until it serves
    version: str = ""  # of wanlora
    protocol: int = 0
    log: str = ""  # the file in which it writes what it does
    no_log: str = ""  # why that is none

    @property
    def process(self) -> ProcessId | None:
        """The daemon's process while it lives and can be seen from here: not that of another machine or container."""
        found = ProcessId(self.pid, self.start, self.boot)
        return found if self.boot and is_alive(found) else None

    def log_text(self, log: str) -> str:
        """Where to read what it does; `log` is how its file is written."""
        return f"It writes no log file: {self.no_log}." if self.no_log else f"Its log: {log}"

    @property
    def is_stopped(self) -> bool:
        """Whether a signal (SIGSTOP, Ctrl+Z, a debugger) holds it."""
        return (process := self.process) is not None and state_of(process) in ("T", "t")


class Lock:
    """The lock, held by this process until `close`."""

    def __init__(self, descriptor: int, paths: DaemonPaths, log: str, no_log: str) -> None:
        me = identify(os.getpid())
        assert me is not None
        self._descriptor, self._path = descriptor, paths.lock
        # that of a daemon before this one: where nothing can be written it still tells clients the way
        before = _parsed(os.pread(descriptor, MAX_BYTES, 0))
        self._runtime_before = before.runtime if before else ""
        self._holder = LockHolder(
            pid=me.pid,
            start=me.start,
            boot=me.boot,
            host=socket.gethostname(),
            started=time.time(),
            version=VERSION,
            protocol=PROTOCOL_VERSION,
            log=log,
            no_log=no_log,
        )
        try:
            self._write()
        except OSError:
            if not self._runtime_before:
                raise

    def publish(self, runtime: Path) -> None:
        """Say where the sockets are from now on. Raises OSError."""
        self._holder = msgspec.structs.replace(self._holder, runtime=str(runtime))
        try:
            self._write()
        except OSError:
            if self._runtime_before != str(runtime):
                raise

    def tell(self, log: str, no_log: str) -> None:
        """Say where the log is from now on, as far as the disk takes it."""
        if (log, no_log) != (self._holder.log, self._holder.no_log):
            before, self._holder = self._holder, msgspec.structs.replace(self._holder, log=log, no_log=no_log)
            try:
                self._write()
            except OSError:
                self._holder = before  # and is said when the disk takes it

    def _write(self) -> None:
        """In place, because the lock belongs to this file and to no other that could be renamed over it."""
        data = f"{self._holder.pid}".ljust(PID_BYTES - 1).encode() + b"\n" + msgspec.json.encode(self._holder) + b"\n"
        try:
            os.pwrite(self._descriptor, data, 0)
            os.ftruncate(self._descriptor, len(data))
        except OSError as e:
            if e.errno == errno.EBADF:  # opened to be read, for its disk is read-only
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self._path)) from None
            raise

    def is_in_place(self) -> bool:
        """Whether the file that we hold is still the one that others find."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        os.close(self._descriptor)


def take_lock(paths: DaemonPaths, log: str = "", no_log: str = "") -> Lock:
    """Become the one daemon of these paths, which says what it does in the file `log`, or why in none. Raises
    UserError."""
    make_private(paths.state)
    try:
        descriptor = _open(paths.lock)
    except OSError as e:
        raise UserError(
            f"cannot be opened: {e.strerror}", where=str(paths.lock), fix="Correct the permissions of its folder"
        ) from None
    try:
        _lock(descriptor, paths)
        return Lock(descriptor, paths, log, no_log)
    except OSError as e:
        os.close(descriptor)
        raise UserError(
            f"cannot be locked and written: {e.strerror}",
            where=str(paths.lock),
            fix="Set XDG_STATE_HOME to a folder on a disk that can lock files and has room, or use --dir",
        ) from None
    except UserError:
        os.close(descriptor)
        raise


def _open(lock: Path) -> int:
    """To be read alone where it cannot be written: on a disk that has become read-only. Raises OSError."""
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as e:
        if e.errno != errno.EROFS:
            raise
        return os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)


def _lock(descriptor: int, paths: DaemonPaths) -> None:
    """Raises UserError when another daemon holds it. A client that looks holds it too, shared and for a moment: that is
    waited for."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if (holder := _holder_of(descriptor)) is not None or time.monotonic() > deadline:
                pid = holder.pid if holder else 0
                raise UserError(
                    f"another daemon (pid {pid or 'unknown'}) already serves this directory",
                    where=str(paths.state),
                    fix="Use it, or end it with: wanlora daemon stop",
                ) from None
            time.sleep(random.uniform(0.01, 0.05))


def read_holder(paths: DaemonPaths) -> LockHolder | None:
    """Who holds the lock of these paths; None when nobody does. Its pid is 0 where it cannot be read.

    Raises DaemonError when the state folder is another user's, as after `sudo -E`.
    """
    with _opened(paths.lock) as descriptor:
        return None if descriptor is None else _holder_of(descriptor)


@contextmanager
def _opened(lock: Path) -> Iterator[int | None]:
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        yield None
        return
    except OSError as e:
        raise DaemonError(f"cannot be read: {e.strerror}", where=str(lock), fix=_OTHER_USER) from None
    try:
        if (owner := os.fstat(descriptor).st_uid) != os.getuid():
            raise DaemonError(
                f"belongs to {user_name(owner)}, and you are {user_name(os.getuid())}", where=str(lock), fix=_OTHER_USER
            )
        yield descriptor
    finally:
        os.close(descriptor)


_OTHER_USER = "Run this as the user whose daemon it is, or with a HOME or XDG_STATE_HOME of your own"


def user_name(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _holder_of(descriptor: int) -> LockHolder | None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    else:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        return None
    for _ in range(20):  # it may be in the middle of a write, or not have written yet what its predecessor left there
        holder = _parsed(os.pread(descriptor, MAX_BYTES, 0))
        if holder is not None and (
            not holder.boot or holder.host != socket.gethostname() or holder.process is not None
        ):
            return holder
        time.sleep(0.01)
    return holder or LockHolder(pid=0)


def _parsed(data: bytes) -> LockHolder | None:
    first, _, rest = data.partition(b"\n")
    pid = int(first) if len(first) < PID_BYTES and first.strip().isdigit() else 0
    try:
        holder = msgspec.json.decode(rest.partition(b"\n")[0], type=LockHolder)
    except (msgspec.MsgspecError, RecursionError):
        return LockHolder(pid=pid) if pid and not rest.strip() else None
    return holder if holder.pid == pid else None

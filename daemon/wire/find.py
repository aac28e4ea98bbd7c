"""Finding the daemon, and whether what listens there may be trusted: the same for all that talk to it, whatever the
shell's variables, its version and its state. Talking itself is in daemon.wire.blocking and daemon.wire.client."""

import os
import socket
import stat
import struct
from pathlib import Path
from typing import NamedTuple

from daemon.errors import NotAnswering, NotRunning, Untrusted, VersionMismatch
from daemon.processes.proc import ProcessId, has_open, identify, state_of
from daemon.wire.lock import LockHolder, read_holder, user_name
from daemon.wire.paths import DaemonPaths, daemon_paths
from daemon.wire.protocol import PROTOCOL_VERSION

ASK_SECONDS = 5.0  # for the answer of a daemon that may have something large to do just now


class DaemonLocation(NamedTuple):
    """Where the daemon is looked for."""

    where: DaemonPaths  # with the sockets' folder that the daemon itself has published, if one holds the lock
    # of the lock in the state folder; None: no daemon runs there (its sockets may come here through a tunnel)
    holder: LockHolder | None

    @property
    def process(self) -> ProcessId | None:
        """The daemon's process, proven by its start time; or, up to 0.1.0, by the lock file that it has open. None when
        it cannot be seen from here."""
        if self.holder is None:
            return None
        if self.holder.boot:
            return self.holder.process
        return identify(self.holder.pid) if self.holder.pid and has_open(self.holder.pid, self.where.lock) else None


def find(dir: Path | None = None) -> DaemonLocation:
    """The daemon of `dir`, the user's own by default. Raises DaemonError when the state folder is another user's."""
    where = daemon_paths(dir)
    holder = read_holder(where)
    if holder is not None and holder.runtime:
        where = DaemonPaths(Path(holder.runtime), where.state, where.config)
    return DaemonLocation(where, holder)


def require_daemon(found: DaemonLocation, address: Path, *, connected: bool = False) -> None:
    """Raises NotRunning unless somebody listens at this socket who can be trusted, NotAnswering when a daemon should.

    Asked of the socket itself, so it holds for a forwarded one too. Before anything is sent: a folder in /tmp that
    another user made first, or could write to, can hold a false daemon. `connected`: we are, and that holds while the
    lock is held.
    """
    if reason := why_untrusted(found.where.runtime) or why_untrusted(address, link=True):
        fix = (
            "It moves away by itself within seconds; try again"
            if found.holder
            else "What listens there was not asked. Start your own with `wanlora daemon start`: it takes another folder"
        )
        raise Untrusted(
            (
                f"{_nobody(found)}; {reason}"
                if found.holder is None
                else f"the daemon (pid {found.holder.pid}) cannot be reached: {reason}"
            ),
            fix=fix,
        )
    if connected and found.holder is not None:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(address))
        except BlockingIOError:  # it listens, with many waiting before us
            return
        except OSError:
            raise not_running(found) from None
        _, uid, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        if uid != os.getuid():
            raise Untrusted(
                f"{_nobody(found)}; at {address} listens {user_name(uid)}",
                fix="Remove that socket, or use a folder of your own with --dir",
            )


def why_untrusted(path: Path, *, link: bool = False) -> str:
    """Why the folder of the sockets, or one of them, is not to be trusted; "" when it may be, also when there is none.
    `link`: it may be one."""
    try:
        facts = path.stat() if link else path.lstat()
    except OSError:
        return ""
    if facts.st_uid != os.getuid():
        return f"{path} belongs to {user_name(facts.st_uid)}, not to you"
    if stat.S_ISLNK(facts.st_mode):
        return f"{path} is a link"
    return f"other users can write to {path}" if stat.S_ISDIR(facts.st_mode) and facts.st_mode & 0o022 else ""


def not_running(found: DaemonLocation, waited: float = 0.0) -> NotRunning:
    """What to say of a daemon that cannot be spoken to. `waited`: seconds for an answer that did not come."""
    holder = found.holder
    if holder is None and not waited:
        return NotRunning(_nobody(found), fix="Start it with: wanlora daemon start")
    if holder is None:
        return NotAnswering(
            f"the daemon has not answered for {waited:.3g} s",
            fix="It may be stopped (kill -CONT), or its machine too busy",
        )
    who = f"the daemon (pid {holder.pid or 'unknown'})"
    if found.process is None and holder.host not in ("", socket.gethostname()):
        return NotAnswering(
            f"{who} runs on {holder.host}, which shares {found.where.state} with this machine",
            fix=(
                f"Use it there, or reach it with: wanlora attach --host {holder.host}. A daemon of this machine's own"
                " needs another XDG_STATE_HOME"
            ),
        )
    log = f" {holder.log_text(holder.log or str(found.where.log))}"
    starting = bool(holder.boot) and not holder.runtime and not holder.is_stopped
    if starting and not waited:
        return NotAnswering(f"{who} is still starting", fix=f"Try again in a moment.{log}", starting=True)
    silence = f"has not answered for {waited:.3g} s" if waited else "does not answer"
    match state_of(process) if (process := found.process) else "":
        case "T" | "t":
            return NotAnswering(
                f"{who} {silence}: it is stopped by a signal",
                fix=(
                    f"Let it continue with `kill -CONT {holder.pid}`, or end it with `wanlora daemon stop`; trainers"
                    f" keep running.{log}"
                ),
            )
        case "D":
            return NotAnswering(
                f"{who} {silence}: it waits for a disk",
                fix=(
                    "Is a network disk lost? If it stays so, end it with `wanlora daemon stop`; trainers keep"
                    f" running.{log}"
                ),
            )
    return NotAnswering(
        f"{who} {silence}: it is hung, or its machine too busy",
        fix=f"If it stays so, end it with `wanlora daemon stop`; trainers keep running.{log}",
    )


def _nobody(found: DaemonLocation) -> str:
    return f"no daemon is running (looked in {found.where.state} and {found.where.runtime})"


def mismatch(version: int) -> VersionMismatch:
    """`version`: the protocol that the daemon speaks."""
    return VersionMismatch(
        f"the daemon speaks protocol version {version}, this client version {PROTOCOL_VERSION}",
        fix=(
            "The older one is the daemon: upgrade wanlora where it runs, if that is not done, and renew it there with:"
            " wanlora daemon restart"
            if version < PROTOCOL_VERSION
            else "The older one is this side: upgrade wanlora here. What was open during an upgrade is only to be left"
            " and opened again"
        ),
    )

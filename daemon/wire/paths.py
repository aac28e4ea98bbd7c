"""Where the daemon keeps its sockets (a private runtime directory) and its records (the state directory).

`DaemonPaths` has all of one daemon's. Without a directory the user's own ones are taken; a given directory holds both,
in its `run` and `state`, so that several daemons never meet. Who serves there is said in the lock (daemon.wire.lock).
"""

import os
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from presets.errors import UserError

IPC_PATH_LIMIT = 107  # bytes: sun_path holds 108 with its closing zero
ELSEWHERE = "elsewhere"  # a file beside sockets that lead to a daemon of another machine; it says to which


@dataclass(frozen=True)
class DaemonPaths:
    """The files of one daemon."""

    runtime: Path
    state: Path
    config: Path = field(default_factory=lambda: platformdirs.user_config_path("wanlora"))

    @property
    def settings(self) -> Path:
        """What the user decides (daemon.settings)."""
        return self.config / "settings.toml"

    @property
    def keys(self) -> Path:
        """Keys for clients of the network (daemon.wire.keys)."""
        return self.config / "keys"

    @property
    def control(self) -> Path:
        """Socket for requests."""
        return self.runtime / "control.sock"

    @property
    def feed(self) -> Path:
        """Socket of the live feed."""
        return self.runtime / "feed.sock"

    @property
    def is_elsewhere(self) -> bool:
        """Whether the daemon runs on another machine."""
        return (self.runtime / ELSEWHERE).exists()

    @property
    def lock(self) -> Path:
        """Held by the running daemon; who and where it is stands inside (daemon.wire.lock). In the state directory,
        because a login manager may take the runtime directory away when its user logs out, and two daemons must never
        share one job table."""
        return self.state / "daemon.lock"

    @property
    def database(self) -> Path:
        return self.state / "jobs.sqlite3"

    @property
    def log(self) -> Path:
        """What a daemon without a terminal says."""
        return self.state / "daemon.log"

    def job_file(self, job: int) -> Path:
        """The job as submitted: later edits of the user's own file do not reach a queued job."""
        return self.state / "jobs" / f"job-{job}.toml"


def runtime_dir() -> Path:
    """Where the sockets go: `wanlora` in $XDG_RUNTIME_DIR, or in /run/user/UID where that is not set or not to be used
    (as after `su`, which leaves the variable of the user before), or `/tmp/wanlora-UID` where there is neither.

    Where the daemon really is, its lock says (daemon.wire.lock): not every shell of a user has the same variables.
    """
    for base in (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{os.getuid()}"):
        found = Path(base, "wanlora")
        if base.startswith("/") and _is_own(Path(base)) and len(os.fsencode(found / "control.sock")) <= IPC_PATH_LIMIT:
            return found
    return spare_parent() / f"wanlora-{os.getuid()}"


def spare_parent() -> Path:
    """/tmp, whatever TMPDIR says: that is another one in each job of a batch system, and goes with it."""
    return Path("/tmp") if os.access("/tmp", os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def _is_own(directory: Path) -> bool:
    try:
        facts = directory.stat()
    except OSError:
        return False
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() and os.access(directory, os.W_OK | os.X_OK)


def daemon_paths(dir: Path | None = None) -> DaemonPaths:
    """The paths of the user's daemon, or of the one that lives in `dir`. Makes nothing.

    Raises UserError when a socket's path would be longer than the system allows.
    """
    found = (
        DaemonPaths(dir.absolute() / "run", dir.absolute() / "state", dir.absolute())
        if dir
        else DaemonPaths(runtime_dir(), platformdirs.user_state_path("wanlora"))
    )
    length = len(os.fsencode(found.control))
    if length > IPC_PATH_LIMIT:
        raise UserError(
            f"a socket path may have {IPC_PATH_LIMIT} bytes, this one has {length}",
            where=str(found.control),
            fix="Give a directory with a shorter path",
        )
    return found


def make_private(directory: Path) -> None:
    """Make a directory that only its owner may enter (mode 0700).

    Raises UserError when the path is not a directory, is a link, or belongs to somebody else: another user could have
    put it there to listen in.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = directory.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
            raise UserError(
                "is not a directory of your own",
                where=str(directory),
                fix="Remove it, or choose another directory with --dir",
            )
        if stat.S_IMODE(facts.st_mode) != 0o700:  # what is so already can be so on a read-only disk
            directory.chmod(0o700)
    except OSError as e:
        raise UserError(
            f"cannot be made: {e.strerror}", where=str(directory), fix="Choose another directory with --dir"
        ) from None


def endpoint(socket: Path) -> str:
    return f"ipc://{socket}"

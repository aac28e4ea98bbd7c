"""Ending the daemon, whatever its version and state. Trainers keep running in any case.

Jobs are stopped by a request instead (daemon.wire.client); starting is daemon.wire.start's.
"""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from daemon.errors import DaemonError, NotAnswering, NotRunning, RequestRefused, VersionMismatch
from daemon.processes.proc import ProcessId, is_alive, marked_by, send, state_of
from daemon.wire.blocking import AnyVersionClient
from daemon.wire.find import ASK_SECONDS, DaemonLocation, find, not_running
from daemon.wire.lock import read_holder
from daemon.wire.paths import daemon_paths
from daemon.wire.protocol import PROTOCOL_VERSION, RUNNING_STATES

END_SECONDS = 20.0  # for a daemon that has agreed to end, or was sent SIGTERM; it has an answer to finish at most
KILL_SECONDS = 10.0


class Stopped(NamedTuple):
    ran: bool  # there was one to end
    ended: bool  # none runs any more
    text: str  # what was done, or why it could not be; sentences
    trainers: int | None = 0  # that keep running; None: nobody knows


def stop_daemon(dir: Path | None = None, *, patience: float = END_SECONDS) -> Stopped:
    """Ask the daemon of `dir` to end; send SIGTERM when it does not, and SIGKILL as the last resort. Waits for its end.

    Only the very process that holds the lock is signalled: a later one with its pid has another start time. Raises
    DaemonError when the state folder is another user's.
    """
    found = find(dir)
    process, holder = found.process, found.holder
    trainers: int | None = None
    said = ""
    if holder is None or not holder.is_stopped:
        try:
            said, trainers, agreed = _ask(found)
        except (VersionMismatch, RequestRefused) as e:
            said, agreed = f"{_sentence(e.what)} ", False
        except NotRunning as e:
            if holder is None and not isinstance(e, NotAnswering):
                return Stopped(False, True, _sentence(e.what))
            agreed = False
        if holder is None and not agreed:
            return Stopped(
                True,
                False,
                f"{said}It has not agreed to end, and no lock in {found.where.state} names its process: end it by hand",
            )
        if agreed and _until(lambda: _gone(found, process), patience):
            return Stopped(True, True, f"{said}The daemon{_pid(found)} has ended.", trainers)
    return _by_signal(found, process, said, patience)._replace(trainers=trainers)


def live_trainers(dir: Path | None = None) -> list[int]:
    """The processes of trainers of the daemon of `dir`, whether that runs or not."""
    state = daemon_paths(dir).state
    return [process.pid for process in marked_by(f"{state}:")]


def _ask(found: DaemonLocation) -> tuple[str, int | None, bool]:
    """What is to be said of its version, how many trainers it has, whether it agreed to end. Raises NotRunning,
    VersionMismatch."""
    said, trainers = "", None
    with AnyVersionClient(found, timeout=ASK_SECONDS) as talk:
        hello = talk.hello()
        if hello.version == PROTOCOL_VERSION:
            trainers = sum(j.state in RUNNING_STATES for j in talk.jobs().jobs)
        else:
            said = (
                f"It spoke protocol version {hello.version}{f' (wanlora {hello.wanlora})' if hello.wanlora else ''},"
                f" this client version {PROTOCOL_VERSION}. "
            )
        return said, trainers, talk.shutdown()


def _by_signal(found: DaemonLocation, process: ProcessId | None, said: str, patience: float) -> Stopped:
    if process is None:
        if _gone(found, None):
            return Stopped(True, True, f"{said}The daemon{_pid(found)} has ended.")
        trouble = not_running(found)
        return Stopped(
            True, False, f"{said}The daemon cannot be ended from here: {_sentence(trouble.what)} {trouble.fix}"
        )
    stopped = state_of(process) in ("T", "t")
    why = "It was stopped by a signal" if stopped else "It did not answer or did not end"
    try:
        send(process, signal.SIGTERM)
        if stopped:
            send(process, signal.SIGCONT)  # only now: it finds the other one waiting
        if _until(lambda: not is_alive(process), patience):
            return Stopped(
                True,
                True,
                f"{said}{why}, so it was sent {'SIGTERM and SIGCONT' if stopped else 'SIGTERM'}. The"
                f" daemon{_pid(found)} has ended.",
            )
        send(process, signal.SIGKILL)
    except PermissionError:
        return Stopped(True, False, f"{said}{why}, and this user may not send signals to pid {process.pid}.")
    if _until(lambda: not is_alive(process), KILL_SECONDS):
        return Stopped(
            True,
            True,
            f"{said}{why}, and did not end on SIGTERM, so it was sent SIGKILL. The daemon{_pid(found)} has ended.",
        )
    return Stopped(
        True,
        False,
        f"{said}{why}, and is there even after SIGKILL: the kernel holds pid {process.pid}, waiting for a disk perhaps."
        " It ends when that answers.",
    )


def _gone(found: DaemonLocation, process: ProcessId | None) -> bool:
    if process is not None:
        return not is_alive(process)
    if found.holder is None:  # known by its sockets alone
        try:
            with AnyVersionClient(found, timeout=1.0):
                return False
        except DaemonError:
            return True
    now = read_holder(found.where)
    return now is None or (now.pid, now.start) != (found.holder.pid, found.holder.start)


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return met


def _pid(found: DaemonLocation) -> str:
    return f" (pid {found.holder.pid})" if found.holder is not None and found.holder.pid else ""


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."

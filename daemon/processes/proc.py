"""Facts of processes from /proc: who a process really is, which ones belong to a trainer, what the kernel killed."""

import os
import signal
from pathlib import Path

from msgspec import Struct

MARKER = "WANLORA_TRAINER"  # set in a trainer's environment, so that all its processes can be found again


class ProcessId(Struct, frozen=True):
    """One process for good: a pid alone comes round again, with its start time and the boot it does not."""

    pid: int
    start: int  # clock ticks from boot to its start
    boot: str


def boot_id() -> str:
    """Another one for each boot of this machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> list[str] | None:
    """/proc/PID/stat from the state on (field 3), or None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()  # the command before it may hold blanks and brackets


def identify(pid: int) -> ProcessId | None:
    """Who has `pid` now, be it a zombie; None when nobody has."""
    fields = _stat(pid)
    return ProcessId(pid, int(fields[19]), boot_id()) if fields else None


def is_alive(process: ProcessId) -> bool:
    """Whether it is still there and not a zombie, which has ended and waits for its parent to notice."""
    fields = _stat(process.pid)
    return (
        fields is not None and fields[0] not in "ZX" and int(fields[19]) == process.start and boot_id() == process.boot
    )


def state_of(process: ProcessId) -> str:
    """The letter in /proc of what it does: R runs, S and I wait, D waits for a disk, T and t are stopped by a signal, Z
    has ended; "" when it is gone."""
    fields = _stat(process.pid)
    return fields[0] if fields is not None and int(fields[19]) == process.start else ""


def has_open(pid: int, file: Path) -> bool:
    """Whether a process of this user has a file open."""
    try:
        wanted = file.stat()
        return any(os.path.samestat(descriptor.stat(), wanted) for descriptor in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def marked(marker: str) -> list[ProcessId]:
    """Every live process that carries `marker`, parents before children; whatever session it moved to."""
    wanted = f"{MARKER}={marker}".encode()
    found: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            environment = Path(f"/proc/{entry.name}/environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # it ended, or is somebody else's
            continue
        if wanted in environment.split(b"\0"):
            fields = _stat(int(entry.name))
            if fields and fields[0] not in "ZX":
                found[int(entry.name)] = int(fields[1])
    ordered = sorted(found, key=lambda pid: (_depth(pid, found), pid))
    return [p for p in map(identify, ordered) if p]


def _depth(pid: int, parents: dict[int, int]) -> int:
    depth = 0
    while parents.get(pid) in parents:
        pid, depth = parents[pid], depth + 1
    return depth


def send(process: ProcessId, number: signal.Signals) -> None:
    """Signal a process if it is still the same one. One that has just ended is no error."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if is_alive(process):  # the handle keeps meaning this process, even if its pid comes round meanwhile
            signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return
    finally:
        os.close(handle)


def oom_kills() -> int:
    """How many processes the kernel has ended for want of memory since boot; -1 when it does not say."""
    facts = Path("/proc/vmstat")
    for line in facts.read_text().splitlines() if facts.exists() else []:
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return -1

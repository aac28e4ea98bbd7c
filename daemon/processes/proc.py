"""Who a process is, what it does, which ones belong to a trainer, and what the kernel killed.

Most comes from psutil. It has no start time that a clock which is set leaves alone, no boot, no signal without a race
and no count of the kernel's kills: those are read from /proc here. Starting and ending trainers is next door
(start_trainer, trainer_process).
"""

import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

# for a process that writes a log: it is read as UTF-8, whatever a shell asks for
UTF8_OUTPUT = {"PYTHONIOENCODING": "utf-8:backslashreplace"}
_PAGE = os.sysconf("SC_PAGE_SIZE")
MARKER = "WANLORA_TRAINER"  # set in a trainer's environment, so that all its processes can be found again


class ProcessId(Struct, frozen=True):
    """One process for good: a pid is used again, but not with the same start time in the same boot."""

    pid: int
    start: int  # clock ticks from boot to its start
    boot: str


def boot_id() -> str:
    """A different one for each boot of this machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def session_id() -> str:
    """A different one for each start of the container that this process lives in: when its first process started, and
    its namespace of pids. The machine itself counts as one."""
    first = _state_and_start(1)  # None where other users' processes are hidden
    return f"{first[1] if first else ''} {Path('/proc/self/ns/pid').readlink()}"


def _state_and_start(pid: int) -> tuple[str, int] | None:
    """Two fields of /proc/PID/stat, or None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the command before it may hold blanks and brackets
    return fields[0], int(fields[19])


def identify(pid: int) -> ProcessId | None:
    """Who has `pid` now, be it a zombie; None when nobody has."""
    found = _state_and_start(pid)
    return ProcessId(pid, found[1], boot_id()) if found else None


def families(pids: Collection[int]) -> dict[int, list[int]]:
    """Each of some processes -> itself and all that descend from it, by one look at all processes there are."""
    children = defaultdict[int, list[int]](list)
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdecimal():
            with suppress(OSError):  # it has ended meanwhile
                file = os.open(f"/proc/{name}/stat", os.O_RDONLY)
                try:
                    text = os.read(file, 4096)
                finally:
                    os.close(file)
                children[int(text[text.rindex(b")") + 2 :].split(None, 2)[1])].append(int(name))
    found = {}
    for pid in pids:
        family = found[pid] = [pid]
        for one in family:  # it grows meanwhile
            family += [child for child in children[one] if child not in family]
    return found


def memory_of(pid: int) -> tuple[int, int]:
    """(bytes that a process has in memory, those of them that it shares with others) Raises OSError."""
    _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_bytes().split()
    return int(resident) * _PAGE, int(shared) * _PAGE


def age(process: ProcessId) -> float:
    """Seconds since it started, whatever the clocks of the wall have done since."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - process.start / os.sysconf("SC_CLK_TCK")


def state_of(process: ProcessId) -> str:
    """The letter in /proc of what it does: R runs, S and I wait, D waits for a disk, T and t are stopped by a signal, Z
    has ended; "" when there is no such process any more."""
    found = _state_and_start(process.pid)
    return found[0] if found and found[1] == process.start and boot_id() == process.boot else ""


def is_alive(process: ProcessId) -> bool:
    """Whether it is still there and not a zombie, which has ended and waits for its parent to notice."""
    return state_of(process) not in ("", "Z", "X")


def has_open(pid: int, file: Path) -> bool:
    """Whether a process of this user has a file open."""
    try:
        wanted = file.stat()
        return any(os.path.samestat(descriptor.stat(), wanted) for descriptor in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def marked(marker: str) -> list[ProcessId]:
    """Every live process that carries `marker`, whatever session it moved to; the oldest first, so parents before their
    children."""
    return _carrying(lambda found: found == marker)


def marked_by(beginning: str) -> list[ProcessId]:
    """The same of every marker that begins so."""
    return _carrying(lambda found: found.startswith(beginning))


def _carrying(fits: Callable[[str], bool]) -> list[ProcessId]:
    import psutil  # every client needs this module, and few ask for this

    found = []
    for process in psutil.process_iter():
        try:
            if fits(process.environ().get(MARKER, "")):  # that of a zombie is empty
                found.append(identify(process.pid))
        except psutil.Error:  # it ended, or belongs to another user
            continue
    return sorted((p for p in found if p), key=lambda p: (p.start, p.pid))


def send(process: ProcessId, number: signal.Signals) -> None:
    """Signal a process if it is still the same one. One that has just ended is no error."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if is_alive(process):  # the handle means this process, even if its pid is used again meanwhile
            signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return
    finally:
        os.close(handle)


def oom_kills() -> int:
    """How many processes the kernel has killed for lack of memory since boot; -1 when it does not say."""
    facts = Path("/proc/vmstat")
    for line in facts.read_text().splitlines() if facts.exists() else []:
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return -1

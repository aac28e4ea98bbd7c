"""Who works in a run folder or on a GPU: trainers of a daemon that it does not know of, and other people's processes.

A single process is daemon.processes.proc's, trainers that the daemon knows are daemon.processes.trainer_process's.
"""

import os
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import psutil

from daemon.processes.proc import MARKER, ProcessId, identify
from presets.errors import UserError
from presets.job.toml_file import load_job
from presets.machine.gpus import Gpu, read_gpus
from presets.machine.visible_gpus import ORDER, VISIBLE
from presets.runs.events import EVENTS_FILE
from presets.text import human

LOCK_FILE = ".lock"  # engine.run's: open for as long as a trainer works in the folder
LOG = re.compile(r"^attempt_(\d+)\.log$")
# bytes of a GPU that others may hold before it counts as used: a desktop draws with a few hundred MiB, or more with a
# browser; nothing computes with less than this
COMPUTES, DRAWS, UNSEEN = 512 * 2**20, 2 * 2**30, 2 * 2**30


# --- run folders ----------------------------------------------------------------------------------------------


def marked_by(state: Path) -> dict[str, list[ProcessId]]:
    """All processes of this user that a daemon of this state folder has marked: marker -> processes, the oldest, which
    is the launcher, first."""
    found: dict[str, list[ProcessId]] = {}
    for process in psutil.process_iter():
        try:
            marker = process.environ().get(MARKER, "")
        except psutil.Error:  # it ended, or belongs to another user
            continue
        if marker.startswith(f"{state}:") and (known := identify(process.pid)):
            found.setdefault(marker, []).append(known)
    return {marker: sorted(there, key=lambda p: (p.start, p.pid)) for marker, there in found.items()}


def writers(run_dir: Path) -> list[int]:
    """The processes of this user that work in a run folder: they have its lock or its events open for writing."""
    if not run_dir.is_dir():
        return []
    folder = run_dir.resolve()
    wanted = {folder / LOCK_FILE, folder / EVENTS_FILE}
    return [pid for pid in psutil.pids() if any(path in wanted for path in _written(pid))]


def run_dir_of(processes: Sequence[ProcessId]) -> Path | None:
    """The run folder that a trainer works in: by its log, by what its processes write, by its command."""
    for file in (file for process in processes for file in _written(process.pid)):
        if LOG.match(file.name) and file.parent.name == "logs":
            return file.parent.parent
        if file.name == EVENTS_FILE:
            return file.parent
    command = command_of(processes[0].pid)
    try:
        return Path(command[command.index("--out") + 1], load_job(job_file_of(processes[0].pid)).job.name)
    except (ValueError, IndexError):  # UserError is one
        return None


def job_file_of(pid: int) -> Path:
    """The job file that a trainer was given."""
    command = command_of(pid)
    return Path(command[command.index("--out") - 1] if "--out" in command else "")


def attempt_of(pid: int) -> int:
    """The number of a launcher's attempt, by its log; 0 when it has another."""
    found = [LOG.match(file.name) for file in _written(pid)]
    return next((int(match[1]) for match in found if match), 0)


def command_of(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []


def devices_of(pid: int) -> list[str]:
    """The GPUs that a trainer of a daemon was given."""
    try:
        return [name for name in psutil.Process(pid).environ().get(VISIBLE, "").split(",") if name]
    except psutil.Error:
        return []


def _written(pid: int) -> list[Path]:
    """The files that a process of this user has open for writing; [] for another user's."""
    found = []
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            path = descriptor.readlink()
            if path.is_absolute() and path.name.startswith((LOCK_FILE, EVENTS_FILE, "attempt_")):
                facts = Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text()
                flags = re.search(r"^flags:\s*(\d+)", facts, re.MULTILINE)
                if flags and int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY:
                    found.append(path)
    except OSError:
        pass
    return found


# --- GPUs -----------------------------------------------------------------------------------------------------


def others_on(
    numbers: Sequence[int], devices: Sequence[str], ours: Callable[[], Collection[int]], *, nvml: Any = None
) -> str:
    """Who else computes on these GPUs, for people; "" when nobody does, or nothing can be known. `numbers`: what
    job.gpus calls the `devices`. `ours`: gives the pids that do not count. `nvml` stands in for pynvml in tests."""
    gpus, _ = read_gpus({VISIBLE: ",".join(devices), ORDER: "PCI_BUS_ID"}, (0, 0), nvml=nvml)
    known = ours() if any(gpu.processes for gpu in gpus) else ()
    found = [_others(number, gpu, known) for number, gpu in zip(numbers, gpus, strict=False) if not gpu.error]
    return " ".join(text for text in found if text)


def _others(number: int, gpu: Gpu, ours: Collection[int]) -> str:
    others = [p for p in gpu.processes if p.pid not in ours]
    computing = [p for p in others if p.compute]
    seen = sum(p.memory for p in gpu.processes)
    used = gpu.vram_total - gpu.vram_free  # both 0 where the GPU has no memory of its own
    busy = [
        *(computing if sum(p.memory for p in computing) >= COMPUTES or not gpu.vram_total else []),
        *(p for p in others if not p.compute and p.memory >= DRAWS),
    ]
    if busy:
        first, more = busy[0], f" and {len(busy) - 1} more" if len(busy) > 1 else ""
        user = f" (user {_user(first.pid)})" if _user(first.pid) else ""
        return (
            f"GPU {number} is used by pid {first.pid} {first.name}".rstrip()
            + f"{user}{more}, {human(sum(p.memory for p in busy))}."
        )
    if used - seen >= UNSEEN:  # a container sees no pids, some drivers tell no memory of each
        who = f"pid {computing[0].pid}" if computing else "who holds it cannot be seen from here"
        return f"GPU {number} has {human(used)} of its memory in use ({who})."
    return ""


def _user(pid: int) -> str:
    try:
        return psutil.Process(pid).username()
    except (psutil.Error, KeyError):
        return ""


def require_unoccupied(run_dir: Path, pids: Sequence[int]) -> None:
    """Raises UserError when somebody else's trainer works in a run folder."""
    if pids:
        raise UserError(
            f"a trainer that this daemon did not start is at work in this run folder (pid {pids[0]},"
            f" {' '.join(command_of(pids[0]))[:100] or 'which has ended by now'})",
            where=str(run_dir),
            fix="Wait for it or stop it first (Ctrl+C in its terminal saves), or give this job another name",
        )

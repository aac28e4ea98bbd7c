"""What of this machine's memory and cores this process may use: its control groups and its CPU affinity."""

import os
from pathlib import Path, PurePosixPath

PROC_CGROUP = Path("/proc/self/cgroup")
CGROUP_ROOT = Path("/sys/fs/cgroup")


def cgroup_memory(proc: Path = PROC_CGROUP, root: Path = CGROUP_ROOT) -> list[tuple[int, int]]:
    """(limit, used) in bytes of each memory control group that limits this process. Both versions of Linux control
    groups.

    Page cache does not count as used: the kernel drops it when memory is asked for.
    """
    limits = []
    for folder, version in _cgroups(proc, root, "memory"):
        names, prefix = (
            (("memory.max", "memory.current"), "")
            if version == 2
            else (("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_")
        )
        limit, used = _number(folder / names[0]), _number(folder / names[1])
        if limit is not None and used is not None:
            cache = sum(_statistic(folder / "memory.stat", f"{prefix}{age}_file") for age in ("active", "inactive"))
            limits.append((limit, max(0, used - cache)))
    return limits


def cores(proc: Path = PROC_CGROUP, root: Path = CGROUP_ROOT) -> int:
    """Cores this process may run on, a container's CPU quota counted in whole cores (rounded up)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder, version in _cgroups(proc, root, "cpu"):
        if version == 2:
            words = content(folder / "cpu.max").split()
            quota, period = (int(words[0]), int(words[1])) if len(words) == 2 and words[0].isdigit() else (0, 1)
        else:
            quota, period = _number(folder / "cpu.cfs_quota_us") or 0, _number(folder / "cpu.cfs_period_us") or 1
        if quota > 0:
            count = min(count, max(1, -(-quota // period)))
    return count


def _cgroups(proc: Path, root: Path, controller: str) -> list[tuple[Path, int]]:
    """The folders of the control groups this process is in, innermost first, each with its version (1 or 2).

    Inside a container the path in /proc may be the host's, of which only the end is mounted: groups that are not there
    are passed over.
    """
    found = []
    for line in content(proc).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            version, top = 2, root
        elif controller in controllers.split(","):
            version, top = 1, root / controller
        else:
            continue
        inside = PurePosixPath(path.lstrip("/"))
        found += [(top / group, version) for group in (inside, *inside.parents) if (top / group).is_dir()]
    return list(dict.fromkeys(found))


def content(path: Path) -> str:
    """A kernel file's text; "" when this kernel does not have it."""
    try:
        return path.read_text("ascii")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    """The number in a kernel file; None for "max" and for no such file."""
    text = content(path).strip()
    return int(text) if text.isdigit() else None


def _statistic(path: Path, name: str) -> int:
    return next((int(line.split()[1]) for line in content(path).splitlines() if line.startswith(f"{name} ")), 0)

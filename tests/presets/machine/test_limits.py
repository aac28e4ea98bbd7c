"""What control groups leave of memory and cores; and that all who divide work among cores ask for these."""

import os
from pathlib import Path

import pytest

from presets.machine.limits import cgroup_memory, cores
from tests.helpers import ROOT


def cgroup(tmp_path: Path, lines: str, files: dict[str, str]) -> tuple[Path, Path]:
    (tmp_path / "proc").write_text(lines)
    for name, content in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "proc", tmp_path / "cgroup"


def test_memory_limits_of_control_groups_v2(tmp_path: Path) -> None:
    files = {
        "pod/job/memory.max": "max\n",
        "pod/job/memory.current": "500\n",
        "pod/memory.max": "1000\n",
        "pod/memory.current": "700\n",
        "pod/memory.stat": "anon 300\ninactive_file 150\nactive_file 50\n",
        "cgroup.controllers": "memory",
    }
    assert cgroup_memory(*cgroup(tmp_path, "0::/pod/job\n", files)) == [(1000, 500)]


def test_memory_limits_of_control_groups_v1(tmp_path: Path) -> None:
    files = {
        "memory/docker/abc/memory.limit_in_bytes": "4000\n",
        "memory/docker/abc/memory.usage_in_bytes": "1000\n",
        "memory/docker/abc/memory.stat": "inactive_file 1\ntotal_inactive_file 300\ntotal_active_file 100\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
        "memory/memory.usage_in_bytes": "5000\n",
    }
    assert cgroup_memory(*cgroup(tmp_path, "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n", files)) == [
        (4000, 600),
        (9223372036854771712, 5000),
    ]


@pytest.mark.parametrize("path", ["/host/path/of/the/container", "/../../elsewhere"])
def test_a_container_that_sees_only_its_own_group(tmp_path: Path, path: str) -> None:
    assert cgroup_memory(*cgroup(tmp_path, f"0::{path}\n", {"memory.max": "2000\n", "memory.current": "100\n"})) == [
        (2000, 100)
    ]


def test_no_control_groups(tmp_path: Path) -> None:
    assert cgroup_memory(tmp_path / "none", tmp_path) == []


def test_cpu_quota(tmp_path: Path) -> None:
    all_cores = len(os.sched_getaffinity(0))
    assert cores(*cgroup(tmp_path, "0::/\n", {"cpu.max": "50000 100000\n"})) == 1
    assert cores(*cgroup(tmp_path, "0::/\n", {"cpu.max": "max 100000\n"})) == all_cores
    assert (
        cores(
            *cgroup(
                tmp_path,
                "3:cpu,cpuacct:/\n",
                {"cpu,cpuacct/x": "", "cpu/cpu.cfs_quota_us": "90000", "cpu/cpu.cfs_period_us": "100000"},
            )
        )
        == 1
    )
    assert (
        cores(*cgroup(tmp_path, "3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}))
        == all_cores
    )


def test_nobody_asks_the_machine_itself_how_many_cores_there_are() -> None:
    """It says how many it has, not how many a container may use."""
    asking = {
        path.relative_to(ROOT).as_posix()
        for floor in ("presets", "engine", "daemon", "wanlora_tui")
        for path in (ROOT / floor).rglob("*.py")
        if any(word in path.read_text() for word in ("cpu_count", "sched_getaffinity"))
    }
    assert asking == {"presets/machine/limits.py"}

"""Who works in a run folder or on a GPU."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from daemon.processes.occupants import (
    COMPUTES,
    DRAWS,
    attempt_of,
    devices_of,
    marked_by,
    others_on,
    require_unoccupied,
    run_dir_of,
    writers,
)
from daemon.processes.proc import MARKER
from presets.errors import UserError
from tests.helpers.waiting import until
from tests.presets.machine.test_machine import GIB, Card, FakeNvml

ME = os.getpid()


def using(pid: int, memory: int | None) -> Any:
    return SimpleNamespace(pid=pid, usedGpuMemory=memory)


def told(card: Card, *, ours: set[int] | None = None, **driver: Any) -> str:
    return others_on([3], [card.uuid], lambda: ours or set(), nvml=FakeNvml(card, **driver))


# --- GPUs -----------------------------------------------------------------------------------------------------


def test_who_computes_is_named_with_what_he_holds():
    text = told(Card(computing=[using(ME, 34 * GIB)], free=40 * GIB))
    assert text.startswith(f"GPU 3 is used by pid {ME} ") and text.endswith(", 34.0 GiB.") and "(user " in text
    two = told(Card(computing=[using(ME, 34 * GIB), using(1, GIB)], free=40 * GIB))
    assert " and 1 more, 35.0 GiB." in two


def test_trainers_of_ours_and_a_desktop_do_not_count():
    assert told(Card()) == ""
    assert told(Card(computing=[using(ME, 34 * GIB)], free=46 * GIB), ours={ME}) == ""
    assert told(Card(drawing=[using(ME, 300 * 2**20), using(2, GIB)], free=78 * GIB)) == ""
    assert told(Card(computing=[using(ME, COMPUTES - 1)], drawing=[using(ME, 0)])) == ""
    assert "is used by" in told(Card(computing=[using(ME, COMPUTES)]))
    assert "is used by" in told(Card(drawing=[using(ME, DRAWS)]))  # a game


def test_where_no_pids_are_seen_the_memory_in_use_tells():
    hidden = told(Card(free=46 * GIB))
    assert hidden == "GPU 3 has 34.0 GiB of its memory in use (who holds it cannot be seen from here)."
    assert told(Card(free=79 * GIB)) == ""  # what the driver itself takes
    denied = told(Card(computing=pynvml.NVMLError_NoPermission(), free=46 * GIB))
    assert "34.0 GiB" in denied
    assert f"(pid {ME})" in told(Card(computing=[using(ME, None)], free=46 * GIB))  # the driver tells no memory


def test_a_gpu_that_shares_the_memory_of_the_machine_is_judged_by_its_processes():
    shared: Any = pynvml.NVMLError_NotSupported()
    assert told(Card(total=shared)) == ""
    assert "is used by" in told(Card(total=shared, computing=[using(ME, None)]))


def test_what_is_wrong_with_a_gpu_is_for_the_trainer_to_say():
    assert told(Card(handle=pynvml.NVMLError_GpuIsLost())) == ""
    assert told(Card(), init=pynvml.NVMLError_DriverNotLoaded()) == ""


def test_only_the_gpus_of_the_job_are_looked_at():
    cards = [Card(uuid="GPU-a", computing=[using(ME, GIB)]), Card(uuid="GPU-b")]
    assert others_on([1], ["GPU-b"], set, nvml=FakeNvml(*cards)) == ""
    assert others_on([0, 1], ["GPU-a", "GPU-b"], set, nvml=FakeNvml(*cards)).startswith("GPU 0 ")


# --- run folders ----------------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_trainer_is_found_by_its_state_folder_and_its_run_folder_by_its_log(tmp_path: Path):
    run_dir = tmp_path / "runs/one"
    (run_dir / "logs").mkdir(parents=True)
    marker = f"{tmp_path}/state:7:abc"
    with (
        (run_dir / "logs/attempt_4.log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(600)"],
            env=os.environ | {MARKER: marker, "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"},
            stdout=log,
        ) as child,
    ):
        found = until(lambda: marked_by(tmp_path / "state"))
        assert [p.pid for p in found[marker]] == [child.pid] and marked_by(tmp_path / "stat") == {}
        assert run_dir_of(found[marker]) == run_dir and attempt_of(child.pid) == 4
        assert devices_of(child.pid) == ["GPU-a", "GPU-b"]
        child.kill()


def test_who_writes_in_a_run_folder_is_told_from_who_reads(tmp_path: Path):
    events = tmp_path / "events.jsonl"
    assert writers(tmp_path / "nothing") == [] == writers(tmp_path)
    events.touch()
    with events.open("rb"):
        assert writers(tmp_path) == []  # tail -f
    with events.open("ab"):
        assert writers(tmp_path) == [ME]
    with (tmp_path / ".lock").open("w"):
        assert writers(tmp_path) == [ME]
        with pytest.raises(UserError, match=rf"at work in this run folder \(pid {ME}, "):
            require_unoccupied(tmp_path, [ME])
    require_unoccupied(tmp_path, writers(tmp_path))

"""The suite itself: levels are found, a unit test that starts something is caught, and torch has one thread wherever it
runs."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import conftest
from tests.helpers import ROOT, levels
from tests.helpers.figures import another_machine
from tests.helpers.figures.sitecustomize import SEED
from tests.helpers.interface.harness import own_daemon, wanlora
from tests.helpers.stalls import MARK, Stalls, ending_all, marked
from tests.helpers.waiting import until
from tests.wanlora_tui.screens import conftest as pictures


def computes() -> int:
    return sum(range(3))


def runs_something() -> None:
    subprocess.run(["true"], check=True)


class Runner:
    def run(self) -> None:
        def deeper() -> None:
            wanlora("--help")

        deeper()


def trains(tiny: Path) -> None:
    from engine.run import run_job

    run_job(tiny, None, resume=False)


def test_what_a_test_can_reach_gives_its_level():
    assert not levels.starts(computes, set()) and not levels.starts(levels.LEVELS, set())
    for one in (
        runs_something,
        Runner,
        trains,
        own_daemon,
        lambda: Runner().run(),
        lambda: [runs_something() for _ in "ab"],
    ):
        assert levels.starts(one, set()), one


def test_workers_begin_with_the_files_that_start_something(request: pytest.FixtureRequest, monkeypatch):
    monkeypatch.setattr(conftest, "WORKER", "gw0")
    items = request.session.items[::-1]
    conftest.pytest_collection_modifyitems(items)
    # files that wait for each other are put among them
    starts = {item.path for item in items if not item.get_closest_marker("unit") or "picture" in item.fixturenames}
    assert [item.path in starts for item in items] == sorted((item.path in starts for item in items), reverse=True)


def test_files_that_wait_for_each_other_are_put_apart():
    assert hasattr(pictures, "picture"), "those that draw pictures are found by its name"
    items = [SimpleNamespace(path=Path(name), number=i) for i, name in enumerate("aabbcdefgh")]
    conftest._put_apart(items, {Path("b"), Path("c")}, among=6)  # type: ignore[arg-type]
    assert "".join(str(item.path) for item in items) == "bbaadcefgh"
    assert [item.number for item in items if str(item.path) in "ab"] == [2, 3, 0, 1]


def test_each_test_has_one_level(request: pytest.FixtureRequest):
    for item in request.session.items:
        assert sum(item.get_closest_marker(level) is not None for level in levels.LEVELS) == 1, item.nodeid


class Fast:
    """A test that says it is a unit test."""

    def get_closest_marker(self, name: str) -> bool:
        return name == "unit"


def test_a_unit_test_that_starts_a_process_is_told_which_mark_to_write():
    watched = levels.watched(Fast())  # type: ignore[arg-type]
    next(watched)
    runs_something()
    with pytest.raises(AssertionError, match=r"mark it @pytest\.mark\.process\. Started: subprocess\.Popen\('true'"):
        watched.send(None)


def test_a_unit_test_is_watched_while_its_fixtures_are_made_too(tmp_path: Path):
    """What a fixture starts may hide deep within the product, where its name is not seen."""
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    (tmp_path / "test_it.py").write_text(
        "import pytest\n@pytest.fixture\ndef made():\n    getattr(__import__('os'), 'sys' + 'tem')('true')\ndef"
        " test_it(made): pass\n"
    )
    root = ROOT
    said = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 1 and "mark it @pytest.mark.process. Started: os.system" in said.stdout, said.stdout


def test_torch_has_one_thread_here_and_in_all_that_is_started():
    """With more, trainers on few cores wait for each other, spinning."""
    code = (
        "import torch; print(torch.get_num_threads(), 'mkl_get_max_threads() : 1\\n' in"
        " torch.__config__.parallel_info() or not torch.backends.mkl.is_available())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "1 True\n"
    import torch

    assert torch.get_num_threads() == 1


def test_what_was_stalled_ends_however_its_tool_ends():
    code = (
        "import os, signal, subprocess\nfrom tests.helpers.stalls import MARK, ending_all\nwith ending_all() as mark:\n"
        "    child = subprocess.Popen(['sleep', '1000'], env=os.environ | {MARK: mark})\n"
        "    os.kill(child.pid, signal.SIGSTOP)\n    print(mark, flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    until(lambda: not marked(said.stdout.strip()), "the end of what it had started and stopped")


def test_a_stall_ends_and_what_a_test_has_stopped_stays_so():
    with ending_all() as mark:
        worker = subprocess.Popen(["sleep", "1000"], env=os.environ | {MARK: mark})
        stopped = subprocess.Popen(["sleep", "1000"], env=os.environ | {MARK: mark})
        os.kill(stopped.pid, signal.SIGSTOP)
        stalls = Stalls(worker.pid, mark, 0.05, 0.01, seed=1)
        until(lambda: marked(mark)[worker.pid][1] == "T", "a stall")
        stalls.end()
        until(lambda: marked(mark)[worker.pid][1] == "S", "its end")
        assert marked(mark)[stopped.pid][1] == "T"
        assert "seed 1" in str(stalls) and not str(stalls).startswith("0 ")
    worker.wait()
    stopped.wait()


def test_another_machine_has_other_figures_for_all_that_is_started():
    code = (
        "import os, shutil, socket, psutil\n"
        "print(shutil.disk_usage('/').total, psutil.virtual_memory().total, os.cpu_count(), socket.gethostname())"
    )
    outer = f"import subprocess, sys; print(subprocess.check_output([sys.executable, '-c', {code!r}], text=True))"

    def seen(environment: dict[str, str]) -> list[str]:
        run = subprocess.run([sys.executable, "-c", outer], env=environment, stdout=subprocess.PIPE, text=True)
        return run.stdout.split()

    found = []
    for seed in (1, 1, 2):
        with another_machine(seed) as (environment, more):
            found.append(seen(environment))
            assert Path(environment["HOME"]).is_dir() and len(more) == 1
        assert not Path(environment["HOME"]).parent.exists()
    assert found[0] == found[1] != found[2] and all(len(figures) == 4 for figures in found)
    plain = {name: value for name, value in os.environ.items() if name != SEED}  # the suite may run with it
    assert seen(plain)[:2] not in [figures[:2] for figures in found]

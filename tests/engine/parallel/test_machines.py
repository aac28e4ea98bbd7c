"""Ranks of two machines that share nothing but files and a link: other networks, other host names, started by the line
that `wanlora plan --torchrun` prints. Names lead to no other machine, and a machine's own leads to loopback.
"""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.run import run_job
from presets.job.toml_file import load_job, save_job, with_value
from tests.engine.parallel.test_ranks import DONE
from tests.helpers import ROOT, UNCOMPILED
from tests.helpers.jobs import events, write_job
from tests.helpers.machines import ADDRESSES, NAMES, Machines, needs_machines
from tests.helpers.training.attempts import ONE_THREAD
from tests.helpers.training.sameness import differences
from tests.helpers.waiting import until
from wanlora_tui.cli import main

pytestmark = [needs_machines, pytest.mark.process]


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    with Machines(tmp_path) as started:
        yield started


def a_job(folder: Path, tiny: Path, steps: int) -> Path:
    """Experts apart, two to each of their steps."""
    one_frame = {"num_frames": 1}
    job = write_job(folder, tiny, prompts=0, steps=steps, dataset=one_frame, save={"every": 4}, gradient_accumulation=2)
    save_job(with_value(load_job(job), "job.gpus", [0, 1]), job, fresh=True)
    return job


def start(machines: Machines, job: Path, capsys: pytest.CaptureFixture[str], *options: str) -> None:
    """By the line as it is printed, but for what it says is to be put in."""
    assert main(["plan", str(job), "--torchrun", "--gpus", "2", "--nodes", "2"]) == 0
    line = capsys.readouterr().out.replace("FIRST_NODE", ADDRESSES["alpha"])
    given = {**ONE_THREAD, **UNCOMPILED, "XDG_CACHE_HOME": str(job.parent / "cache"), "PYTHONPATH": str(ROOT)}
    for number, name in enumerate(NAMES):
        words = shlex.split(line.replace("--node-rank=0", f"--node-rank={number}"))
        assert words[0] == "torchrun" and words[-3:] == ["-m", "engine", str(job)]
        trainer = ["-m", "tests.helpers.training.on_host", name, str(job), *options]
        command = [sys.executable, "-m", "torch.distributed.run", *words[1:-3], *trainer]
        machines.start(name, command, job.parent / f"{name}.log", job.parent, given)


def said(job: Path, name: str) -> str:
    return (job.parent / f"{name}.log").read_text(errors="replace")


def differences_from_one(job: Path, tiny: Path, steps: int) -> list[str]:
    straight = a_job(job.parent / "straight", tiny, steps)
    assert run_job(straight, None, resume=False, workers=0, device="cpu", gpus=[0]) == DONE
    return differences(job.parent / "runs/t", straight.parent / "runs/t")


def test_two_machines_make_what_one_process_makes(
    machines: Machines, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    job = a_job(tmp_path, tiny, 8)
    start(machines, job, capsys)
    assert machines.codes() == [DONE, DONE], [said(job, name)[-3000:] for name in NAMES]
    assert differences_from_one(job, tiny, 8) == []


@pytest.mark.thorough
def test_a_link_that_is_cut_ends_both_machines_with_a_cause_that_names_the_other_and_the_run_goes_on(
    machines: Machines, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    job = a_job(tmp_path, tiny, 40)
    start(machines, job, capsys)
    file = job.parent / "runs/t/events.jsonl"
    until(lambda: file.exists() and '"kind":"checkpoint"' in file.read_text(), "a checkpoint")
    machines.cut()
    (job.parent / "late").touch()
    assert DONE not in machines.codes()
    last = events(job.parent / "runs/t")[-1]
    assert last.kind == "failed" and not last.data["user"], last
    there = ("rank 2 of 4", "rank 3 of 4", ADDRESSES["beta"])
    assert any(name in last.data["cause"] for name in there), last.data["cause"]
    assert f"({ADDRESSES['alpha']}) has not answered for" in said(job, "beta") or (
        "another host has broken: " in said(job, "beta") and ADDRESSES["alpha"] in said(job, "beta")
    ), said(job, "beta")[-3000:]
    machines.join()
    (job.parent / "late").unlink()
    start(machines, job, capsys, "--resume")
    assert machines.codes() == [DONE, DONE], [said(job, name)[-3000:] for name in NAMES]
    assert differences_from_one(job, tiny, 40) == []

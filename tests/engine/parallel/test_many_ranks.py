"""More than two ranks to a clip, and ranks of several hosts: they too come to what one process makes of the job."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.demo.tiny_base import build_tiny
from presets.job.toml_file import load_job, save_job, with_value
from presets.machine.torchrun import stop_options
from tests.engine.parallel.test_ranks import DONE, Runs, ends, require_agreement, share_clips
from tests.helpers import ROOT, UNCOMPILED
from tests.helpers.jobs import events
from tests.helpers.ports import free_port
from tests.helpers.training.attempts import ONE_THREAD, Trainers
from tests.helpers.training.sameness import differences
from tests.helpers.waiting import PATIENCE


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """On a base with four heads, for as many ranks to a clip."""
    folder = tmp_path_factory.mktemp("many")
    with Trainers(cache=folder / "cache") as trainers:
        yield Runs(build_tiny(folder / "base", heads=4, head_dim=8), folder, trainers)


@pytest.mark.parametrize(
    ("ranks", "each"),
    [
        (4, 4),
        # experts apart, and two micro-batches of each step at once, and two to each of them
        pytest.param(8, 2, marks=pytest.mark.thorough),
    ],
)
def test_more_ranks_that_share_clips_agree_with_one(runs: Runs, ranks: int, each: int):
    kind = "clips" if each == ranks else "more clips"
    job = runs.new(kind, f"by {ranks}, {each} each")
    share_clips(job, ranks, each)
    attempts = runs.start(job, ranks)
    assert ends(attempts) == [DONE] * ranks, [attempt.said()[-3000:] for attempt in attempts]
    require_agreement(runs, job, kind)


class Hosts:
    """Two launchers, each with two ranks, which find each other by torchrun's rendezvous."""

    def __init__(self, job: Path, *options: str) -> None:
        meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=wanlora"]
        self.logs = [job.parent / f"{name}.log" for name in ("a", "b")]
        self.processes = []
        for log in self.logs:
            with log.open("wb") as out:
                command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2", *meet]
                trainer = ["-m", "tests.helpers.training.on_host", log.stem, str(job), *options]
                given = {**ONE_THREAD, **UNCOMPILED, "XDG_CACHE_HOME": str(job.parent / "cache")}
                self.processes.append(
                    subprocess.Popen(
                        [*command, "--local-addr=127.0.0.1", *stop_options(30), *trainer],
                        cwd=ROOT,
                        env={**os.environ, **given},
                        stdout=out,
                        stderr=out,
                    )
                )

    def ends(self) -> list[int]:
        try:
            return [process.wait(PATIENCE) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def said(self) -> str:
        return "\n".join(log.read_text(errors="replace")[-3000:] for log in self.logs)


def for_hosts(runs: Runs, kind: str, name: str) -> Path:
    """A job of which each host has two GPUs."""
    job = runs.new(kind, name)
    save_job(with_value(load_job(job), "job.gpus", [0, 1]), job, fresh=True)
    return job


def differences_from_one(runs: Runs, kind: str, job: Path) -> list[str]:
    """From what one process makes of the same file."""
    straight = for_hosts(runs, kind, f"{job.parent.name}, by one")
    assert ends(runs.start(straight, 1, gpus=[0])) == [DONE]
    return differences(job.parent / "runs/t", straight.parent / "runs/t")


# test_machines has two hosts of two ranks each; several share the micro-batches of a step in test_ranks
@pytest.mark.thorough
def test_two_hosts_of_two_ranks_each_make_what_one_process_makes(runs: Runs):
    """The micro-batches of a step are shared by all four. Each host reads the blocks for itself."""
    hosts = Hosts(job := for_hosts(runs, "one", "hosts"))
    assert hosts.ends() == [DONE, DONE], hosts.said()
    assert differences_from_one(runs, "one", job) == []


@pytest.mark.thorough
def test_a_rank_that_dies_on_one_host_ends_those_of_the_other_and_the_run_goes_on(runs: Runs):
    """Experts apart, one on each host. The first also reads the other's, for previews."""
    job = for_hosts(runs, "both", "one host dies")
    hosts = Hosts(job, "--fault", "sigkill:forward:4@3")
    assert [code != DONE for code in hosts.ends()] == [True, True]
    assert events(job.parent / "runs/t")[-1].kind == "failed", hosts.said()
    hosts = Hosts(job, "--resume")
    assert hosts.ends() == [DONE, DONE], hosts.said()
    assert differences_from_one(runs, "both", job) == []

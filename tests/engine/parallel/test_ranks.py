"""A run by several processes comes to what one process makes of it, to the bit, whatever happens to them."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from daemon.processes.start_trainer import for_gpus, torchrun
from presets.job.toml_file import load_job, save_job, with_value
from tests.helpers import ROOT, UNCOMPILED
from tests.helpers.jobs import events, write_job
from tests.helpers.ports import free_port
from tests.helpers.training.attempts import ONE_THREAD, Attempt, Orders, Trainers
from tests.helpers.training.sameness import differences
from tests.helpers.waiting import PATIENCE

JOBS: dict[str, dict] = {
    # Turns of two steps, cut at steps 3 and 6, so that either expert comes first in what both do at once.
    "both": {
        "steps": 8,
        "clips": 4,
        "gradient_accumulation": 2,
        "dataset": {"num_frames": 1},
        "ema": True,
        "save": {"every": 3, "keep": 3},
        "validation": {"fraction": 0.25, "every": 6, "bins": 1},
        "sample": {"every": 8, "steps": 2, "width": 64, "height": 48, "num_frames": 1},
    },
    "clips": {
        "steps": 4,
        "dataset": {"num_frames": 5},
        "save": {"every": 2, "keep": 3, "dtype": "fp32"},
        "sample": {"every": 4, "first": False},
        "validation": {"fraction": 0.4, "every": 4, "bins": 1},
    },
    # For eight.
    "more clips": {
        "steps": 4,
        "gradient_accumulation": 2,
        "dataset": {"num_frames": 5},
        "save": {"every": 2, "keep": 3, "dtype": "fp32"},
        "prompts": 0,
        "validation": {"fraction": 0.4, "every": 4, "bins": 1},
    },
    "set": {"steps": 4, "prompts": 0, "dataset": {"num_frames": 1}, "save": {"every": 3, "keep": 3}},
    # Two losses to a micro-batch whose caption is not dropped: each of them gives a gradient to every parameter, so
    # ranks have several numbers of them to send.
    "one": {
        "steps": 3,
        "prompts": 0,
        "blank_prompt_preservation": True,
        "gradient_accumulation": 4,
        "dataset": {"num_frames": 1, "caption_dropout": 0.5},
        "save": {"every": 2, "keep": 2},
    },
}
DONE, FAILED, STOPPED = 0, 1, 75


class Runs:
    """The same job again and again, by different numbers of processes."""

    def __init__(self, tiny: Path, folder: Path, trainers: Trainers) -> None:
        self._tiny, self._folder, self._trainers = tiny, folder, trainers
        self._straight: dict[str, Path] = {}

    def straight(self, kind: str) -> Path:
        """The job file of a run of this kind by one process, which is made once."""
        if kind not in self._straight:
            job = self._straight[kind] = self.new(kind, "straight")
            assert ends(self.start(job, 1)) == [DONE]
        return self._straight[kind]

    def new(self, kind: str, name: str) -> Path:
        """A job file."""
        path = write_job(self._folder / kind / name, self._tiny, **JOBS[kind])
        save_job(with_value(load_job(path), "multistage.low_noise", kind != "one"), path, fresh=True)
        return path

    def start(
        self,
        job: Path,
        ranks: int,
        faults: Sequence[str] = (),
        *,
        resume: bool = False,
        impatient: Path | None = None,
        orders: Orders | None = None,
        gpus: Sequence[int] | None = None,
    ) -> list[Attempt]:
        """One process for each rank. `orders` come to the first, which tells the steps. `gpus`: of the job's only
        these."""
        port = str(free_port())
        given = [
            {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            for rank in range(ranks)
        ]
        how = {"faults": faults, "resume": resume, "impatient": impatient, "orders": orders, "gpus": gpus}
        return [self._trainers.start(job, environment=env, **how) for env in given]

    def differences(self, kind: str, job: Path, **how: bool) -> list[str]:
        return differences(job.parent / "runs/t", self.straight(kind).parent / "runs/t", **how)


@pytest.fixture(scope="module")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("ranks")
    with Trainers(cache=folder / "cache") as trainers:
        yield Runs(tiny, folder, trainers)


def ends(attempts: list[Attempt]) -> list[int]:
    return [attempt.wait() for attempt in attempts]


@pytest.mark.parametrize(
    ("kind", "ranks"),
    [
        ("both", 4),
        # Two go on by two to the same bits where one of them hung, below.
        pytest.param("one", 2, marks=pytest.mark.thorough),
        pytest.param("both", 2, marks=pytest.mark.thorough),
        pytest.param("one", 4, marks=pytest.mark.thorough),
    ],
)
def test_several_ranks_make_what_one_makes(runs: Runs, kind: str, ranks: int):
    job = runs.new(kind, f"by {ranks}")
    attempts = runs.start(job, ranks)
    assert ends(attempts) == [DONE] * ranks, [attempt.said()[-3000:] for attempt in attempts]
    assert runs.differences(kind, job) == []
    steps = [e.data["step"] for e in events(job.parent / "runs/t") if e.kind == "step"]
    assert steps == list(range(1, JOBS[kind]["steps"] + 1))


@pytest.mark.parametrize(
    ("kind", "by_one", "by_two", "stopped"),
    [
        # In the middle of what both do. The expert whose turn comes first has one step left, and does it: the other has
        # come as far as it has come.
        ("both", "sigterm:noise:2", "sigterm:noise:4@1", {4, 5, 6}),
        # It has two, and ends after the first: what the other has learnt meanwhile is let go.
        pytest.param("both", "", "sigterm:noise:1@0", {1}, marks=pytest.mark.thorough),
        # Two share clips and go on by one, and back, below.
        pytest.param("one", "sigterm:noise:2", "sigterm:noise:3@1", {2}, marks=pytest.mark.thorough),
    ],
)
def test_a_run_goes_on_with_another_number_of_ranks_and_back(
    runs: Runs, kind: str, by_one: str, by_two: str, stopped: set[int]
):
    job = runs.new(kind, f"one, two, one {by_two[-3:]}")
    if by_one:
        assert ends(runs.start(job, 1, [by_one])) == [STOPPED]
    two = runs.start(job, 2, [by_two], resume=bool(by_one))
    assert ends(two) == [STOPPED, STOPPED], [attempt.said()[-3000:] for attempt in two]
    last = events(job.parent / "runs/t")[-1]
    assert last.kind == "stopped" and last.data["step"] in stopped and last.data["why"] == "SIGTERM received"
    assert ends(runs.start(job, 1, resume=True)) == [DONE]
    assert runs.differences(kind, job, extra_saves=True) == []


@pytest.mark.parametrize(
    ("kind", "fault", "codes", "cause"),
    [
        pytest.param(
            "both",
            "sigkill:forward:4@1",
            [FAILED, -9],
            "rank 1 of 2 was killed or has crashed",
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            "both",
            "raise:backward:4@1",
            [FAILED, FAILED],
            "rank 1 of 2: InjectedFault",
            marks=pytest.mark.thorough,
        ),
        ("both", "sigkill:optimizer.after-step:5@0", [-9, FAILED], ""),
        pytest.param(
            "one",
            "sigkill:forward:3@1",
            [FAILED, -9],
            "rank 1 of 2 was killed or has crashed",
            marks=pytest.mark.thorough,
        ),
        pytest.param("one", "raise:noise:3@0", [FAILED, FAILED], "InjectedFault", marks=pytest.mark.thorough),
        # on the way back, while the other waits for its gradients
        ("one", "sigkill:gradients.send:1@1", [FAILED, -9], "rank 1 of 2 was killed or has crashed"),
        pytest.param(
            "one", "raise:gradients.send:1@1", [FAILED, FAILED], "rank 1: InjectedFault", marks=pytest.mark.thorough
        ),
    ],
)
def test_a_rank_that_dies_ends_all_with_its_cause_and_the_run_goes_on_by_one(runs: Runs, kind, fault, codes, cause):
    job = runs.new(kind, fault.replace(":", "-"))
    attempts = runs.start(job, 2, [fault])
    assert ends(attempts) == codes, [attempt.said()[-3000:] for attempt in attempts]
    last = events(job.parent / "runs/t")[-1]
    if cause:
        assert last.kind == "failed" and cause in last.data["cause"] and not last.data["user"]
    else:
        assert "rank 0 of 2 was killed or has crashed" in attempts[1].said()
    assert [e.kind for e in events(job.parent / "runs/t")].count("failed") <= 1
    assert ends(runs.start(job, 1, resume=True)) == [DONE]
    assert runs.differences(kind, job) == []


def test_memory_that_runs_out_on_the_way_back_of_one_rank_leaves_no_other_waiting_for_its_gradients(runs: Runs):
    """A toy has no smaller plan, which both find out together."""
    job = runs.new("one", "short of memory")
    attempts = runs.start(job, 2, ["oom:gradients.send:1@1"])
    assert ends(attempts) == [FAILED, FAILED], [attempt.said()[-3000:] for attempt in attempts]
    last = events(job.parent / "runs/t")[-1]
    assert last.kind == "failed" and last.data["user"] and "and no smaller plan is left" in last.data["cause"]
    assert ends(runs.start(job, 2, resume=True)) == [DONE, DONE]
    assert runs.differences("one", job) == []


def test_what_is_set_while_experts_train_apart_counts_from_the_step_at_which_they_meet(runs: Runs):
    """High noise's second step is told while low noise takes the third, before which both train on: they meet after
    it."""
    command = {"command": "set", "field": "training.lr", "value": "5e-4"}
    made = []
    for ranks, told in ((2, 2), (1, 3)):
        job = runs.new("set", f"by {ranks}")
        attempts = runs.start(job, ranks, orders={told: [command]})
        assert ends(attempts) == [DONE] * ranks, [attempt.said()[-3000:] for attempt in attempts]
        run = job.parent / "runs/t"
        assert [(e.data["step"], e.data["new"]) for e in events(run) if e.kind == "changed"] == [(3, 5e-4)]
        assert [e.data["lr"] for e in events(run) if e.kind == "step"] == [1e-3, 1e-3, 1e-3, 5e-4]
        made.append([load_file(run / f"t_{expert}.safetensors") for expert in ("high_noise", "low_noise")])
    for mine, straight in zip(*made, strict=True):
        assert mine.keys() == straight.keys() and all(torch.equal(mine[name], straight[name]) for name in mine)


def test_a_rank_that_hangs_while_the_others_wait_for_its_gradients_is_named_and_the_run_goes_on_by_two(runs: Runs):
    job = runs.new("one", "hangs")
    late = job.parent / "late"
    attempts = runs.start(job, 2, ["hang:backward:3@1"], impatient=late)
    attempts[1].wait_until_struck()
    late.touch()
    assert ends(attempts) == [FAILED, FAILED], [attempt.said()[-3000:] for attempt in attempts]
    last = events(job.parent / "runs/t")[-1]
    assert last.kind == "failed" and "rank 1 of 2 hangs" in last.data["cause"] and "(step 3)" in last.data["cause"]
    assert "the last checkpoint" in last.data["next"].lower()
    assert ends(runs.start(job, 2, resume=True)) == [DONE, DONE]
    assert runs.differences("one", job) == []


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        # test_team stops one in the middle of an exchange, and one that hangs is above
        pytest.param("one", "stop:gradients.send:1@1", marks=pytest.mark.thorough),
        pytest.param("clips", "stop:shared-pass.exchange:6@1", marks=pytest.mark.thorough),
        # before it sends what it has learnt, for a checkpoint
        pytest.param("both", "stop:optimizer.after-step:3@1", marks=pytest.mark.thorough),
    ],
)
def test_a_rank_whose_process_is_stopped_is_named_and_the_run_goes_on_by_two(runs: Runs, kind: str, fault: str):
    job = runs.new(kind, f"stopped {fault.split(':')[1]}")
    late = job.parent / "late"
    if kind == "clips":
        share_clips(job, 2)
    attempts = runs.start(job, 2, [fault], impatient=late)
    attempts[1].wait_until_struck()
    late.touch()
    assert attempts[0].wait() == FAILED
    attempts[1].kill()  # as torchrun does
    last = events(job.parent / "runs/t")[-1]
    assert last.kind == "failed" and "rank 1 of 2 hangs" in last.data["cause"] and not last.data["user"]
    assert ends(runs.start(job, 2, resume=(job.parent / "runs/t/checkpoints").exists())) == [DONE, DONE]
    if kind == "clips":
        require_agreement(runs, job)
    else:
        assert runs.differences(kind, job) == []


def for_two_gpus(runs: Runs, name: str) -> Path:
    job = runs.new("one", name)
    save_job(with_value(load_job(job), "job.gpus", [0, 1]), job, fresh=True)
    return job


def test_a_job_that_names_two_gpus_is_refused_by_one_process(runs: Runs):
    alone = runs.start(for_two_gpus(runs, "alone"), 1)
    assert ends(alone) == [FAILED] and "the job names 2 GPUs, and 1 process was started" in alone[0].said()


# test_end_to_end has torchrun launch one; the daemon's test_start_trainer knows its options for two.
@pytest.mark.thorough
def test_a_job_that_names_two_gpus_is_launched_as_the_daemon_does(runs: Runs):
    job = for_two_gpus(runs, "launched")
    said = subprocess.run(
        [*for_gpus(torchrun(), 2), str(job)],
        cwd=ROOT,
        env={**os.environ, **ONE_THREAD, **UNCOMPILED, "XDG_CACHE_HOME": str(job.parent / "cache")},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert said.returncode == 0, said.stderr[-3000:]
    mine, straight = (load_file(of.parent / "runs/t/t_high_noise.safetensors") for of in (job, runs.straight("one")))
    assert mine.keys() == straight.keys() and all(torch.equal(mine[name], straight[name]) for name in mine)


def test_a_number_of_ranks_that_cannot_share_is_refused_by_the_first_in_one_line(runs: Runs):
    job = runs.new("one", "three")
    attempts = runs.start(job, 3)
    assert ends(attempts) == [FAILED] * 3
    assert [attempt.said().count("\n") for attempt in attempts] == [1, 0, 0]
    assert "Use 1, 2 or 4 of them" in attempts[0].said()
    assert not (job.parent / "runs").exists()


@pytest.mark.parametrize("resume", [False, True])
def test_a_job_that_the_first_rank_alone_refuses_ends_all_at_once_with_its_message(runs: Runs, resume: bool):
    """By its rules, and for want of a run to resume. The limit within which a rank is waited for is never reached."""
    job = runs.new("one", f"refused {resume}")
    save_job(with_value(load_job(job), "training.dop", True), job)
    attempts = runs.start(job, 2, resume=resume)
    assert ends(attempts) == [FAILED] * 2, [attempt.said() for attempt in attempts]
    said = attempts[1].said()
    assert said.count("\n") == 1 and said.startswith("wanlora: ")
    assert said.removeprefix("wanlora: ").strip() in attempts[0].said()
    assert ("no run lies here" if resume else "errors in the job: job.trigger") in said


def test_a_rank_behind_the_first_that_refuses_by_itself_ends_all_at_once_with_its_message(runs: Runs):
    """Before the limit within which it is waited for, after which they would only not have found each other."""
    job = runs.new("one", "refused by the second")
    attempts = runs.start(job, 4, ["enospc:rank.begin:0@1"])
    assert ends(attempts) == [FAILED] * 4, [attempt.said() for attempt in attempts]
    last = events(job.parent / "runs/t")[-1]
    assert last.kind == "failed" and last.data["user"] and "rank 1: [Errno 28] No space" in last.data["cause"]
    assert all("[Errno 28] No space" in attempt.said() for attempt in attempts)
    assert not any("find each other" in attempt.said() for attempt in attempts)


def share_clips(job: Path, ranks: int, each: int = 2) -> None:
    """Have so many ranks train it, so many on `each` clip; one trains alone."""
    made = with_value(load_job(job), "job.gpus", list(range(ranks)))
    save_job(with_value(made, "job.gpus_per_clip", min(ranks, each)), job)


def require_agreement(runs: Runs, job: Path, kind: str = "clips") -> None:
    """Losses, also of held-out clips, LoRAs and previews are those of one process but for the order in which fp32
    adds."""
    mine, straight = job.parent / "runs/t", runs.straight(kind).parent / "runs/t"
    steps = [[e.data for e in events(run) if e.kind == "step"] for run in (mine, straight)]
    losses, norms = ([[data[key] for data in run] for run in steps] for key in ("loss", "grad_norm"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    held = [
        [
            [loss for of in e.data["experts"].values() for loss in of["clips"]]
            for e in events(run)
            if e.kind == "validation"
        ]
        for run in (mine, straight)
    ]
    assert len(held[0]) == 2 and all(a == pytest.approx(b, rel=1e-4) for a, b in zip(*held, strict=True))
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)  # the optimizer makes nothing of how long a gradient is
    for file in ("t_high_noise.safetensors", "t_low_noise.safetensors"):
        found, wanted = load_file(mine / file), load_file(straight / file)
        assert found.keys() == wanted.keys()
        for name, expected in wanted.items():
            assert (found[name] - expected).norm() <= 1e-3 * expected.norm(), name
    if "prompts" in JOBS[kind]:
        return
    posters = [np.asarray(Image.open(run / "samples/step_000000004/00.png"), int) for run in (mine, straight)]
    assert abs(posters[0] - posters[1]).max() <= 2  # of 255


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.thorough), 4])
def test_ranks_that_share_clips_agree_with_one(runs: Runs, ranks: int):
    """Four train the experts apart as well."""
    share_clips(job := runs.new("clips", f"by {ranks}"), ranks)
    attempts = runs.start(job, ranks)
    assert ends(attempts) == [DONE] * ranks, [attempt.said()[-3000:] for attempt in attempts]
    require_agreement(runs, job)
    steps = [e.data for e in events(job.parent / "runs/t") if e.kind == "step"]
    assert ["vae" in step["seconds"] for step in steps] == [True, False, True, False]  # those of two steps at once


def test_memory_that_runs_out_in_shared_clips_costs_a_measurement_and_has_all_plan_anew(runs: Runs):
    """On one rank, in the second block of a held-out clip, and on the way back of the first that trains: the other
    waits for its tokens. A toy has no smaller plan, which all of them find out together."""
    share_clips(job := runs.new("clips", "short of memory"), 2)
    attempts = runs.start(job, 2, ["oom:shared-pass.exchange:6@1", "oom:shared-pass.exchange:20@1"])
    assert ends(attempts) == [FAILED, FAILED], [attempt.said()[-3000:] for attempt in attempts]
    assert attempts[1].said().count("fault: oom") == 2
    told = events(job.parent / "runs/t")
    (found,) = [e.data for e in told if e.kind == "finding" and e.data["code"] == "validation-failed"]
    assert "after step 0 could not be measured: on purpose" in found["message"] and found["cause"] == "out of memory"
    assert told[-1].kind == "failed" and told[-1].data["user"]
    assert "out of memory in the training step, and no smaller plan is left" in told[-1].data["cause"]
    assert ends(runs.start(job, 2, resume=True)) == [DONE, DONE]
    require_agreement(runs, job)


def test_a_run_whose_clips_were_shared_goes_on_by_one_rank_and_back(runs: Runs):
    job = runs.new("clips", "one, two, one")
    assert ends(runs.start(job, 1, ["sigterm:noise:2"])) == [STOPPED]
    share_clips(job, 2)
    two = runs.start(job, 2, ["sigterm:noise:3@1"], resume=True)
    assert ends(two) == [STOPPED, STOPPED], [attempt.said()[-3000:] for attempt in two]
    share_clips(job, 1)
    assert ends(runs.start(job, 1, resume=True)) == [DONE]
    require_agreement(runs, job)


@pytest.mark.parametrize(
    ("fault", "code", "cause"),
    [
        pytest.param("sigkill:forward:3@1", -9, "rank 1 of 2 was killed or has crashed", marks=pytest.mark.thorough),
        ("raise:forward:3@1", FAILED, "rank 1 of 2: InjectedFault"),  # the first waits for its tokens
        # and here for the clip of the step after
        pytest.param("raise:vae.encode:3@1", FAILED, "rank 1: InjectedFault", marks=pytest.mark.thorough),
        pytest.param("raise:preview.pass:4@1", FAILED, "rank 1 of 2: InjectedFault", marks=pytest.mark.thorough),
    ],
)
def test_a_rank_that_dies_ends_the_other_of_its_clip(runs: Runs, fault: str, code: int, cause: str):
    share_clips(job := runs.new("clips", fault.replace(":", "-")), 2)
    attempts = runs.start(job, 2, [fault])
    assert ends(attempts) == [FAILED, code], [attempt.said()[-3000:] for attempt in attempts]
    last = events(job.parent / "runs/t")[-1]
    assert last.kind == "failed" and cause in last.data["cause"] and not last.data["user"]

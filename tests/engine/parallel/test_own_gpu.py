"""Which GPU is a rank's own, and how many may train one run."""

from pathlib import Path

import pytest

from engine.parallel.own_gpu import own_gpu, require_as_many, require_recorded
from engine.parallel.parts import Rank
from presets.errors import UserError
from presets.facts.facts import Facts
from presets.job import gpu_shares
from presets.job.toml_file import job_from_dict
from tests.helpers.facts import gpu, machine


def facts() -> Facts:
    return Facts(base=Path("/"), machine=machine(gpu(), gpu(index=1), gpu(index=2)))


def test_of_several_ranks_each_has_its_own_gpu_in_the_order_of_the_job():
    job = job_from_dict({"job": {"name": "t", "gpus": [2, 0]}, "datasets": [{"path": "x"}]})
    for local, index in ((0, 2), (1, 0)):
        found = own_gpu(Rank(local, 2, local, 2), job, facts()).machine
        assert found is not None and [gpu.index for gpu in found.gpus] == [index]
    alone = facts()
    assert own_gpu(Rank(0, 1, 0, 1), job, alone) is alone


def test_more_processes_than_gpus_are_refused_by_all_of_them_the_first_too():
    job = job_from_dict({"job": {"name": "t"}, "datasets": [{"path": "x"}]})
    for local in (0, 1):
        with pytest.raises(UserError, match="2 processes were started on this host, and the job names 1 GPU"):
            own_gpu(Rank(local, 2, local, 2), job, facts())


def test_more_cards_than_were_ever_seen_together_are_refused_also_of_several_hosts(monkeypatch: pytest.MonkeyPatch):
    job = job_from_dict({"job": {"name": "t"}, "datasets": [{"path": "x"}]})
    require_recorded(Rank(1, 2, 1, 2), job)
    with pytest.raises(UserError, match="2 cards of several hosts were never seen to train one run together"):
        require_recorded(Rank(1, 2, 0, 1), job)
    with pytest.raises(UserError, match="3 cards were never seen to train one run together"):
        require_recorded(Rank(2, 3, 2, 3), job)
    monkeypatch.setattr(gpu_shares, "RECORDED", 3)
    require_recorded(Rank(2, 3, 2, 3), job)


def test_cards_that_share_clips_are_refused_until_a_benchmark_is_recorded(monkeypatch: pytest.MonkeyPatch):
    job = job_from_dict({"job": {"name": "t", "gpus": [0, 1], "gpus_per_clip": 2}, "datasets": [{"path": "x"}]})
    require_recorded(Rank(1, 2, 1, 2), job)
    monkeypatch.setattr(gpu_shares, "RECORDED_PER_CLIP", 1)
    with pytest.raises(UserError, match=r"benchmarks\.gpus_apart JOB\.toml --gpus 0,1 --per-clip 2"):
        require_recorded(Rank(1, 2, 1, 2), job)


def test_a_job_that_names_two_gpus_is_refused_by_one_process_with_the_command_that_starts_two():
    job = job_from_dict({"job": {"name": "t", "gpus": [0, 1]}, "datasets": [{"path": "x"}]})
    require_as_many(job, 2)
    with pytest.raises(UserError, match=r"wanlora plan JOB\.toml --torchrun"):
        require_as_many(job, 1)

"""Which GPU is a rank's own, and how many may train one run."""

from pathlib import Path

import pytest

from engine.parallel.own_gpu import as_here, left, notices, own_gpu, require_as_many
from engine.parallel.parts import Rank
from presets.errors import UserError
from presets.facts.facts import Facts
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


def test_on_another_host_than_the_first_a_rank_has_its_own_machine():
    job = job_from_dict({"job": {"name": "t", "gpus": [0, 1]}, "datasets": [{"path": "x"}]})
    own = Facts(base=Path("/"), machine=machine(gpu(uuid="GPU-of-this-host")))
    assert as_here(Rank(3, 4, 1, 2), job, own, facts()).machine is own.machine
    shared = as_here(Rank(1, 2, 1, 2), job, own, facts()).machine
    assert shared is not None and [g.index for g in shared.gpus] == [1] and shared.gpus[0].uuid != "GPU-of-this-host"


def test_several_hosts_are_spoken_of_on_cards_and_refused_nowhere():
    job = job_from_dict({"job": {"name": "t", "gpus": [0, 1]}, "datasets": [{"path": "x"}]})
    assert notices(Rank(1, 2, 1, 2), job, job, facts()) == []
    (found,) = notices(Rank(2, 4, 0, 2), job, job, facts())
    assert found.severity == "advice" and found.message.startswith("that 4 cards of 2 hosts make the LoRAs of one")
    assert "compare the losses" in found.fix
    assert notices(Rank(2, 4, 0, 2), job, job, Facts(base=Path("/"), machine=machine())) == []


def test_an_attempt_without_some_of_the_job_s_gpus_has_the_others_in_their_order_and_says_so():
    job = job_from_dict({"job": {"name": "t", "gpus": [2, 0, 1]}, "datasets": [{"path": "x"}]})
    assert left(job, None) is job
    here = left(job, [2, 1])
    for local, index in ((0, 2), (1, 1)):
        found = own_gpu(Rank(local, 2, local, 2), here, facts()).machine
        assert found is not None and [gpu.index for gpu in found.gpus] == [index]
    require_as_many(here, 2)
    (said,) = notices(Rank(0, 2, 0, 2), job, here, facts())
    assert said.code == "gpus-gone" and "without GPU 0" in said.message and "with GPU 2 and 1" in said.message
    with pytest.raises(UserError, match="the job names no GPU 7"):
        left(job, [0, 7])


def test_a_job_that_names_two_gpus_is_refused_by_one_process_with_the_command_that_starts_two():
    job = job_from_dict({"job": {"name": "t", "gpus": [0, 1]}, "datasets": [{"path": "x"}]})
    require_as_many(job, 2)
    with pytest.raises(UserError, match=r"wanlora plan JOB\.toml --torchrun"):
        require_as_many(job, 1)

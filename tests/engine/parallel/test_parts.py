"""Who does what: every micro-batch of every step is one rank's, and numbers that do not fit are refused with those that
do."""

import pytest

from engine.parallel.parts import ALONE, Rank, batch_after, encoded_at_once, parts_of, read_after
from presets.errors import UserError
from presets.job.expert_schedule import expert_at
from presets.job.gpu_shares import numbers
from presets.job.schema import DatasetPanel, Job, JobPanel, ModelPanel
from presets.job.toml_file import with_value

JOB = Job(job=JobPanel(name="t"), model=ModelPanel(path="base"), datasets=[DatasetPanel(path="clips")])


def job_of(accumulation: int, *, both: bool = True) -> Job:
    job: Job = with_value(JOB, "training.gradient_accumulation", accumulation)
    return with_value(with_value(job, "multistage.low_noise", both), "multistage.switch_every", 2)


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (1, 3), (2, 2), (2, 4), (3, 6), (4, 4), (8, 4)])
def test_each_micro_batch_is_one_ranks(world: int, accumulation: int, both: bool):
    job, steps = job_of(accumulation, both=both), 16
    if accumulation % (size := world // 2 if both and world % 2 == 0 else world):
        with pytest.raises(UserError):
            parts_of(job, world)
        return
    taken = []
    parts = parts_of(job, world)
    assert len(parts) == world and {part.sharing for part in parts} == {size}
    for rank, part in enumerate(parts):
        assert part.ranks[part.place] == rank
        index = batch_after(job, part, -1)
        while index < steps * accumulation:
            taken.append(index)
            assert part.expert in (None, expert_at(job, index // accumulation))
            index = batch_after(job, part, index)
    assert sorted(taken) == list(range(steps * accumulation))


def test_an_even_number_trains_both_experts_apart_and_an_odd_one_shares_each_step():
    assert [(p.expert, p.place, p.ranks) for p in parts_of(job_of(2), 4)] == [
        ("high_noise", 0, (0, 1)),
        ("high_noise", 1, (0, 1)),
        ("low_noise", 0, (2, 3)),
        ("low_noise", 1, (2, 3)),
    ]
    assert [(p.expert, p.ranks) for p in parts_of(job_of(1), 2)] == [("high_noise", (0,)), ("low_noise", (1,))]
    assert {p.expert for p in parts_of(job_of(3), 3)} == {None}
    assert {p.expert for p in parts_of(job_of(2, both=False), 2)} == {None}


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (4, 2), (4, 1), (8, 2)])
def test_each_micro_batch_is_that_of_the_ranks_of_one_clip(world: int, accumulation: int, both: bool):
    job, steps = with_value(job_of(accumulation, both=both), "job.gpus_per_clip", 2), 16
    clips = world // 2
    if accumulation % (clips // 2 if both and clips % 2 == 0 else clips):
        with pytest.raises(UserError, match=r"every 2 of the \d that train one expert take one micro-batch"):
            parts_of(job, world)
        return
    taken: list[tuple[int, int]] = []
    for rank, part in enumerate(parts_of(job, world)):
        assert part.clip[part.seat] == rank and len(part.clip) == 2 and set(part.clip) <= set(part.ranks)
        index = batch_after(job, part, -1)
        while index < steps * accumulation:
            taken.append((index, part.seat))
            index = batch_after(job, part, index)
    assert sorted(taken) == [(index, seat) for index in range(steps * accumulation) for seat in (0, 1)]


def test_ranks_of_a_clip_read_in_turns_what_they_encode_and_nothing_beyond_the_run():
    job = with_value(with_value(job_of(1), "job.gpus_per_clip", 2), "training.steps", 7)
    together = parts_of(with_value(job, "multistage.low_noise", False), 2)
    assert encoded_at_once(job, together[1], 3) == [3, 4] and encoded_at_once(job, together[0], 6) == [6]
    assert [read_after(job, part, 3) for part in together] == [5, 5]
    low = parts_of(job, 4)[2]  # its steps are 2 and 3, 6 and 7
    assert (
        encoded_at_once(job, low, 3) == [3, 6] and encoded_at_once(job, low, 6) == [6] and read_after(job, low, 3) == 7
    )
    assert read_after(job, ALONE, 3) == 4
    accumulated = with_value(job, "training.gradient_accumulation", 2)
    assert encoded_at_once(accumulated, together[0], 3) == [3, 4], "of two steps"
    assert encoded_at_once(accumulated, together[1], 12) == [12, 13] and read_after(accumulated, together[1], 11) == 13
    assert encoded_at_once(accumulated, together[0], 13) == [13]


def test_a_number_that_ranks_of_a_clip_do_not_divide_is_refused_with_those_that_they_do():
    job = with_value(job_of(2), "job.gpus_per_clip", 2)
    assert numbers(job) == [2, 4, 8]
    for world in (1, 3):
        with pytest.raises(UserError, match=r"cannot share clips by 2 each.*Use 2, 4 or 8 GPUs"):
            parts_of(job, world)


def test_a_number_that_does_not_divide_is_refused_with_those_that_do():
    with pytest.raises(UserError, match=r"3 GPUs cannot share .* 4 of them.*Use 1, 2 or 4 .*a multiple of 3"):
        parts_of(job_of(4, both=False), 3)
    with pytest.raises(UserError, match=r"6 GPUs cannot share .* 4 of them.*Use 1, 2, 4 or 8 .*a multiple of 3"):
        parts_of(job_of(4), 6)


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("accumulation", [1, 2, 3, 6])
def test_the_numbers_that_are_named_are_those_that_do(accumulation: int, both: bool):
    job, accepted = job_of(accumulation, both=both), []
    for world in range(1, 20):
        try:
            accepted.append(len(parts_of(job, world)))
        except UserError:
            continue
    assert accepted == numbers(job)


def test_a_rank_is_what_torchrun_says_and_alone_without_it():
    assert Rank.of({}) == Rank(0, 1, 0, 1)
    assert Rank.of({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Rank(5, 8, 1)
    torchrun = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert Rank.of(torchrun) == Rank(5, 8, 1, 4)


@pytest.mark.parametrize("world", [{}, {"WORLD_SIZE": ""}, {"WORLD_SIZE": "1"}])
@pytest.mark.parametrize("rest", [{"RANK": "3", "LOCAL_RANK": "3"}, {"RANK": "", "LOCAL_RANK": "node7"}])
def test_what_a_scheduler_has_set_beside_a_single_process_changes_nothing(world: dict[str, str], rest: dict[str, str]):
    assert Rank.of(world | rest) == Rank(0, 1, 0, 1)


@pytest.mark.parametrize(
    "environ",
    [
        {"WORLD_SIZE": "many"},
        {"WORLD_SIZE": "0"},
        {"WORLD_SIZE": "2", "RANK": ""},
        {"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"},
        {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "-1"},
    ],
)
def test_an_environment_that_fits_no_rank_is_refused_with_what_it_says(environ: dict[str, str]):
    with pytest.raises(UserError, match=rf"WORLD_SIZE={environ['WORLD_SIZE']}.*[Uu]nset WORLD_SIZE"):
        Rank.of(environ)

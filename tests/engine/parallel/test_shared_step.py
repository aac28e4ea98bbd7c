"""What befalls one of the ranks that share a step befalls all: a fake team of two, whose other rank says what a test
has it say."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from engine.encode.shared_encodes import HandingFailed
from engine.executor import passes_to_end
from engine.executor.token_split import TokenSplit
from engine.memory.planning import Shortage
from engine.parallel import ordered_sum
from engine.parallel.lost_clips import ClipLost
from engine.parallel.orders import Steps
from engine.parallel.parts import Part
from engine.parallel.team import RankFailed
from engine.system import fault_injection, host_copy
from engine.system.host_copy import HostCopy
from engine.system.pinned_memory import HostMemoryRefused
from engine.training import placement, prepare, train_step, trainer
from engine.training.context import Run
from engine.training.placement import settle
from engine.training.train_step import StepTaken
from engine.training.trainer import OwnSteps, advance, optimizer_step, take_turns
from presets.errors import UserError
from presets.planner.plan import LESS_MEMORY
from tests.helpers.jobs import write_job
from tests.helpers.training.bench import Bench

STEP = 0


@pytest.fixture(scope="module")
def bench(tiny, tmp_path_factory) -> Bench:
    folder = tmp_path_factory.mktemp("shared")
    path = write_job(folder, tiny, prompts=0, dataset={"num_frames": 1}, gradient_accumulation=4)
    return Bench(path)


def run_with(bench: Bench, other: Callable[[Any], Any]) -> Run:
    """The first of two ranks; `other` makes of what this one tells what the second tells."""

    def gather(mine: torch.Tensor) -> list[torch.Tensor]:
        return [mine, mine]

    part = Part(None, 0, (0, 1))
    team = SimpleNamespace(
        part=part,
        parts=[part, part],
        leads=True,
        rank=SimpleNamespace(number=0),
        exchange_sharing=lambda mine: [mine, other(mine)],
        gather=gather,
        signs=SimpleNamespace(give=lambda doing: None),
    )
    return replace(bench.run_of(bench.job), team=team)


def values(run: Run) -> list[torch.Tensor]:
    return [p.detach().clone() for learner in run.learners.values() for p in learner.parameters.values()]


def test_a_users_error_of_another_rank_is_this_ones_and_nothing_has_moved(bench: Bench):
    run = run_with(bench, lambda mine: replace(mine, refused=("it is gone", "clips/1.mp4", "Put it back")))
    before = values(run)
    with pytest.raises(UserError, match=r"clips/1\.mp4: it is gone"):
        optimizer_step(run, STEP)
    assert all(torch.equal(a, b) for a, b in zip(before, values(run), strict=True))
    assert all(p.grad is None for learner in run.learners.values() for p in learner.parameters.values())


def test_a_bug_of_another_rank_is_named(bench: Bench):
    run = run_with(bench, lambda mine: replace(mine, bug="KeyError: 'x'"))
    with pytest.raises(RankFailed, match="rank 1: KeyError"):
        optimizer_step(run, STEP)


def test_memory_that_runs_out_on_another_rank_has_this_one_plan_anew_and_take_the_step_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    shortages, replans = [("vae", Shortage("small", "12 GiB in use of 12"))], []
    monkeypatch.setattr(placement, "replan", lambda run, exhausted, why: replans.append((exhausted, why.text)))
    run = run_with(bench, lambda mine: replace(mine, short=shortages.pop() if shortages else None))
    assert optimizer_step(run, STEP)
    assert replans == [("vae", "12 GiB in use of 12")]


def test_memory_that_runs_out_as_gradients_are_exchanged_has_all_plan_anew_once_all_is_sent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    """The other rank waits for as many pieces as ever. Of the two rounds of the step the first goes well."""
    rounds, replans, pieces = [0], [], []
    monkeypatch.setattr(ordered_sum, "PIECE", 1)
    monkeypatch.setattr(placement, "replan", lambda run, exhausted, why: replans.append(exhausted))

    def other(mine: Any) -> Any:
        if not isinstance(mine, placement._Held):
            rounds[0] += 1
            pieces.append([])
        return mine

    def gather(mine: torch.Tensor) -> list[torch.Tensor]:
        if rounds[0] == 1 and len(pieces[-1]) == 2 and not failed:
            failed.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")
        pieces[-1].append(bool(mine.any()))
        return [mine, mine]

    failed: list[int] = []
    pieces.append([])
    run = run_with(bench, other)
    run.team.gather = gather
    assert optimizer_step(run, STEP)
    assert failed and replans == ["step"]
    *rounds_sent, none = pieces
    assert len(rounds_sent) == 4 and not none  # a round, the one that fails, the step again
    assert len({len(sent) for sent in rounds_sent}) == 1 and len(rounds_sent[0]) > 4
    assert any(rounds_sent[1][:2]) and not any(rounds_sent[1][2:]) and any(rounds_sent[3][2:])


def test_memory_that_runs_out_in_the_middle_of_the_exchange_is_not_tried_again_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    def gather(mine: torch.Tensor) -> list[torch.Tensor]:
        raise RuntimeError("NCCL error: Cuda failure 2 'out of memory'")

    monkeypatch.setattr(placement, "replan", lambda run, exhausted, why: pytest.fail("the others know nothing of it"))
    run = run_with(bench, lambda mine: mine)
    run.team.gather = gather
    with pytest.raises(RankFailed, match="rank 0 could not exchange gradients: NCCL error"):
        optimizer_step(run, STEP)


@pytest.mark.parametrize("is_left", [True, False])
def test_a_step_is_taken_again_under_one_plan_by_all_that_share_it_or_by_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, is_left: bool
):
    shortages = [("step", Shortage("small", "12 GiB in use of 12"))]
    refused = None if is_left else ("no smaller plan is left", "bf16", "Use less")

    def other(mine: Any) -> Any:
        if isinstance(mine, placement._Held):
            return replace(mine, plan=small, downs=2, short="out of memory", refused=refused)
        return replace(mine, short=shortages.pop() if shortages else None)

    def put(run: Run, plan: Any, downs: int) -> None:
        run.planning = replace(run.planning, plan=plan, downs=downs)

    monkeypatch.setattr(placement, "replan", lambda run, exhausted, why: put(run, replace_plan(run, chunk=2048), 1))
    monkeypatch.setattr(placement, "place", lambda run, plan: put(run, plan, run.planning.downs))
    run = run_with(bench, other)
    small = replace_plan(run, chunk=1024)
    before = values(run)
    if is_left:
        assert optimizer_step(run, STEP)
        assert run.planning.plan == small and run.planning.downs == 2 and run.settled == 0
    else:
        with pytest.raises(UserError, match="rank 1: no smaller plan is left"):
            optimizer_step(run, STEP)
        assert all(torch.equal(a, b) for a, b in zip(before, values(run), strict=True))


def test_a_stop_that_another_rank_hears_ends_the_step_between_two_micro_batches(bench: Bench):
    run = run_with(bench, lambda mine: replace(mine, stop="SIGTERM received"))
    before = values(run)
    assert not optimizer_step(run, STEP)
    assert run.control.why == "SIGTERM received"
    assert all(torch.equal(a, b) for a, b in zip(before, values(run), strict=True))


def test_warnings_of_another_rank_are_logged_with_its_number(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    said = []
    run = run_with(bench, lambda mine: replace(mine, warnings=["a data worker died"]))
    monkeypatch.setattr(run.log, "emit", lambda kind, **data: said.append(data.get("text")))
    run.control.why = ""
    assert optimizer_step(run, STEP)
    assert said.count("rank 1: a data worker died") == 2  # two rounds of two micro-batches


@pytest.mark.parametrize("ended_after", [1, 2])
def test_what_an_expert_has_learnt_beyond_the_step_at_which_the_other_ended_is_let_go(
    bench: Bench, ended_after: int, monkeypatch: pytest.MonkeyPatch
):
    """Steps 0 and 1 are high noise's, 2 and 3 low noise's, which this rank takes at the same time. Where there is no
    memory for what it may have to go back to, it ends before any step."""

    def refused(size: int, *, pinned: bool) -> torch.Tensor:
        raise HostMemoryRefused("2 GiB of RAM are needed, and 1 GiB are free")

    first = [OwnSteps(taken=[StepTaken({"step": step + 1}, [], True) for step in range(ended_after)])]
    run = run_with(bench, lambda mine: mine)
    run.team = SimpleNamespace(
        part=Part("low_noise", 0, (1,)),
        parts=[Part("high_noise", 0, (0,)), Part("low_noise", 0, (1,))],
        rank=SimpleNamespace(number=1),
        signs=SimpleNamespace(give=lambda doing: None),
        halted=lambda: False,
        exchange=lambda mine: [*first, mine],
    )
    run.control.why = ""
    learner = run.learners["low_noise"]
    learner.put_back(learner.copied())  # nothing is lost on the way
    before = [p.detach().clone() for p in learner.parameters.values()]
    everyone = take_turns(run, run.team, Steps(0, 4, run.job), lambda taken: None)
    assert [taken.step for taken in everyone[1].taken] == [2, 3]
    kept = all(torch.equal(a, b) for a, b in zip(before, learner.values.values(), strict=True))
    assert kept == (ended_after == 1)
    assert bool(learner.optimizer.state) == (ended_after == 2)
    with monkeypatch.context() as patch, pytest.raises(RankFailed, match="rank 1, to be able to go back to step 0"):
        patch.setattr(host_copy, "host_buffer", refused)
        learner.copy = HostCopy(pinned=False)
        take_turns(run, run.team, Steps(0, 4, run.job), lambda taken: None)


def test_ranks_with_several_plans_go_on_with_that_of_the_one_that_went_furthest_down(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    run, said = run_with(bench, lambda mine: mine), []
    small = replace_plan(run, chunk=1024)
    monkeypatch.setattr(
        placement, "place", lambda run, plan: setattr(run, "planning", replace(run.planning, plan=plan))
    )
    monkeypatch.setattr(run.log, "emit", lambda kind, **data: said.append((kind, data)))

    def exchange(mine: Any) -> list[Any]:
        return [mine, replace(mine, plan=small, downs=2, short="out of memory in the VAE")]

    settle(run, SimpleNamespace(exchange=exchange, parts=run.team.parts))
    assert run.planning.plan == small and run.planning.downs == run.settled == 2
    assert [kind for kind, _ in said] == ["replanned"]
    assert said[0][1]["why"] == "rank 1: out of memory in the VAE" and said[0][1]["new"] == small.text


def test_a_plan_that_one_rank_cannot_take_ends_all(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    run = run_with(bench, lambda mine: mine)
    refusals = [None, ("no smaller plan is left", "bf16", "Use less")]

    def exchange(mine: Any) -> list[Any]:
        refused = refusals.pop(0)
        return [mine, replace(mine, refused=refused, plan=replace_plan(run, chunk=512))]

    monkeypatch.setattr(placement, "place", lambda run, plan: None)
    with pytest.raises(UserError, match="rank 1: no smaller plan is left"):
        settle(run, SimpleNamespace(exchange=exchange, parts=run.team.parts))


def run_of_a_clip(bench: Bench, other: Callable[[str], str]) -> Run:
    """The first of two ranks that share a clip, before anything is split: `other` gives what the second has made."""
    run = run_with(bench, lambda mine: mine)
    run.team.part = Part(None, 0, (0, 1), 2)
    run.team.exchange_clip = lambda mine: [mine, other(mine)]
    return replace(run, split=TokenSplit(None, 0, 2, lambda collective: None))


@pytest.mark.parametrize(("preserving", "frozen", "at"), [(False, 0, 0), (False, 1, -1), (True, 0, 6), (True, 0, -1)])
def test_memory_that_runs_out_within_a_shared_clip_has_all_take_the_step_again_under_a_smaller_plan(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, preserving: bool, frozen: int, at: int
):
    """Wherever it is in the clip: as many exchanges follow as the other rank waits for. With a second loss, and with
    blocks before the first that learns."""
    job = bench.changed(training__blank_prompt_preservation=preserving)
    bench.learn_texts([job])
    run, asked, replans = replace(run_of_a_clip(bench, lambda mine: mine), job=job), list[object](), list[str]()
    run = replace(run, split=TokenSplit(None, 0, 2, asked.append))
    monkeypatch.setattr(placement, "replan", lambda run, exhausted, why: replans.append(exhausted))
    executor = run.experts.executors["high_noise"]
    loras = [{} if i < frozen else lora for i, lora in enumerate(executor.weights.lora)]
    monkeypatch.setattr(executor, "weights", replace(executor.weights, lora=loras))
    learner = run.learners["high_noise"]
    learning = {name: p for name, p in learner.parameters.items() if int(name.split(".")[1]) >= frozen}
    run.learners = {**run.learners, "high_noise": replace(learner, parameters=learning)}
    there, back = 4 * executor.blocks + 1, 8 * (executor.blocks - frozen)
    of_a_clip = there + back + preserving * (2 * there + back)
    fault_injection.arm([f"oom:shared-pass.exchange:{at % of_a_clip}"])
    assert optimizer_step(run, STEP)
    assert replans == ["step"] and len(asked) == (1 + job.training.gradient_accumulation) * of_a_clip


def test_memory_that_runs_out_within_a_shared_clip_for_zeros_too_ends_the_rank_with_what_to_do(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("12 GiB in use of 12")

    run, told = run_of_a_clip(bench, lambda mine: mine), []
    run.team.give_up = told.append
    monkeypatch.setattr(train_step, "through_expert", full)
    monkeypatch.setattr(passes_to_end, "_exchanges", full)
    with pytest.raises(ClipLost):
        optimizer_step(run, STEP)
    (loss,) = told
    assert loss.user and loss.fix == LESS_MEMORY and "out of memory in the midst of a clip that 2 GPUs" in loss.cause


def test_an_encode_that_cannot_be_handed_on_ends_the_rank(bench: Bench):
    def take(*_: Any) -> None:
        raise HandingFailed("RuntimeError: NCCL error")

    run, told = run_of_a_clip(bench, lambda mine: mine), []
    run.encodes, run.team.give_up = SimpleNamespace(take=take), told.append
    with pytest.raises(ClipLost, match="NCCL error"):
        optimizer_step(run, STEP)
    assert [loss.cause for loss in told] == ["RuntimeError: NCCL error"]


@pytest.mark.parametrize("unlike", [1, 3])
def test_cards_of_two_kinds_train_no_run_together(unlike: int):
    """Whichever they are, and whatever they share. The first rank says so, and ends the others."""

    def require(*others: str, leads: bool = True) -> None:
        def exchange(mine: str) -> list[str]:
            return [mine, *(other or mine for other in others)]

        prepare.require_one_kind(SimpleNamespace(exchange=exchange, leads=leads), torch.device("cpu"))

    require("", "", "")
    others = ["another" if rank == unlike else "" for rank in (1, 2, 3)]
    with pytest.raises(UserError, match="are not of one kind"):
        require(*others)
    require(*others, leads=False)


def test_ranks_that_have_made_several_of_a_clip_go_no_further(bench: Bench):
    with pytest.raises(AssertionError, match="have made several of it"):
        optimizer_step(run_of_a_clip(bench, lambda mine: "0" * 64), STEP)


def replace_plan(run: Run, **values: Any) -> Any:
    return msgspec.structs.replace(run.planning.plan, **values)


@pytest.mark.parametrize(("part", "begun"), [(None, 3), ("high_noise", 4), ("high_noise", 0)])
def test_ranks_that_cannot_have_one_plan_end_with_what_they_have_learnt_saved(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, part: Any, begun: int
):
    """Before a step that they share, before turns that they take apart, and after such turns, in which memory ran out
    on one of them."""
    saved: list[int] = []
    told: list[int] = []

    def exchange(mine: Any) -> list[Any]:
        if isinstance(mine, placement._Held):
            return [mine, replace(mine, refused=("no smaller plan is left", "bf16", "Use less"))]
        return [mine, OwnSteps(taken=[StepTaken({"step": step}, [], True) for step in (3, 4)], downs=1)]

    monkeypatch.setattr(trainer, "save_all", lambda run, step: saved.append(step))
    monkeypatch.setattr(trainer, "report_step", lambda run, taken: told.append(taken.step))
    run = run_with(bench, lambda mine: mine)
    run.control.why, run.settled = "", run.planning.downs
    if begun:
        run.planning = replace(run.planning, downs=run.planning.downs + 1)
    mine, other = (Part(part, 0, (0,)), Part("low_noise", 0, (1,))) if part else (run.team.part, run.team.part)
    run.team.part, run.team.parts, run.team.rank = mine, [mine, other], SimpleNamespace(number=0)
    run.team.exchange, run.team.halted, run.team.at_work = exchange, lambda: False, nullcontext
    with pytest.raises(UserError, match="rank 1: no smaller plan is left"):
        advance(run, begun)
    assert saved == [begun or 4]
    assert told == ([] if begun else [0, 1, 2, 3])

"""Why memory ran out, and what is done about it. The card's numbers are made up."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from engine.memory import out_of_memory
from engine.memory.out_of_memory import loading
from engine.memory.planning import CardMemory, Planning, shortage, smaller
from engine.system import pinned_memory
from engine.system.pinned_memory import HostMemoryRefused, host_buffer
from engine.system.placement import Placement
from engine.training import placement, train_step
from engine.training.context import Learner, Run
from presets.errors import UserError
from presets.planner.cards import card_hardware, find_card
from presets.planner.costs import predict
from presets.planner.plan import Plan
from presets.planner.sizes import ExpertShape
from presets.planner.workload import workload_of
from presets.recipes.recommend import plain_job

GIB, CPU = 2**30, torch.device("cpu")
PLACEMENT = Placement(CPU, torch.float32, pinned=False)
JOB = plain_job("motion", "orbit", "clips")
CARD = card_hardware(find_card("4090"), ram=128 * GIB)


@pytest.fixture
def planning() -> Planning:
    return Planning(
        Plan(precision="float8", resident=40, slots=0, activations="device"),
        "a test",
        CARD,
        workload_of(JOB),
        ExpertShape(),
        others=int(0.5 * GIB),
    )


def card(free: float, reserved: float, allocated: float) -> CardMemory:
    return CardMemory(24 * GIB, int(free * GIB), int(reserved * GIB), int(allocated * GIB))


@pytest.mark.parametrize(
    ("now", "before", "cause", "said"),
    [
        (card(0.1, 23.3, 23.0), 0.5, "small", "23.0 GiB in use"),
        (card(0.1, 15.4, 15.0), 0.5, "shrunk", "took 8.0 GiB of the card since"),
        (card(0.1, 15.4, 15.0), 8.5, "others", "hold 7.9 GiB"),
        (card(0.1, 23.3, 15.0), 0.5, "pieces", "8.3 GiB are free but in pieces"),
        (card(0.1, 22.8, 22.0), 0.5, "small", "22.0 GiB in use"),  # CUDA itself has grown by half a GiB
    ],
)
def test_the_causes_are_told_apart(planning, now, before, cause, said):
    found = shortage(now, replace(planning, others=int(before * GIB)))
    assert found.cause == cause and said in found.text
    assert (found.lost > 0) == (cause == "shrunk")


def test_what_others_took_is_believed_at_once(planning):
    """8 GiB gone: the next plan fits in the rest, where a rung at a time would fail and fail again."""

    def need(plan: Plan) -> int:
        return predict(plan, planning.work, CARD, planning.shape).need_vram

    one, far = smaller(JOB, planning, "step"), smaller(JOB, planning, "step", 8 * GIB)
    assert need(far) <= CARD.vram_free - 8 * GIB < need(one) < need(planning.plan)
    # nothing fits: the smallest is tried, for what it is worth
    assert smaller(JOB, planning, "step", 23 * GIB) is not None


class Log:
    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []

    def emit(self, kind: str, **data: Any) -> None:
        self.said.append((kind, data))


def run_with(planning: Planning, failures: list[Exception], monkeypatch) -> tuple[Run, list[Plan]]:
    """A run whose experts fail to be placed with these errors, one after the other."""
    placed: list[Plan] = []

    def set_plan(plan: Plan) -> None:
        if failures:
            raise failures.pop(0)
        placed.append(plan)

    monkeypatch.setattr(placement, "make_encoder", lambda vae, plan, ours: SimpleNamespace(vae=vae, ours=ours))
    run = Run.__new__(Run)
    for name, value in {
        "job": JOB,
        "planning": planning,
        "log": Log(),
        "placement": PLACEMENT,
        "experts": SimpleNamespace(set_plan=set_plan, recorded=False),
        "encoder": SimpleNamespace(vae=None, ours=""),
    }.items():
        setattr(run, name, value)
    return run, placed


def oom() -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError("CUDA out of memory")


def test_no_room_for_the_residents_is_a_rung_down_and_not_the_end(planning, monkeypatch):
    run, placed = run_with(planning, [oom(), oom()], monkeypatch)
    placement.place(run, planning.plan)
    assert len(placed) == 1 and placed[0] == run.planning.plan != planning.plan
    assert [kind for kind, _ in run.log.said] == ["replanned", "replanned"]
    first, second = (data for _, data in run.log.said)
    assert first["old"] == planning.plan.text and first["new"] == second["old"] and second["new"] == placed[0].text


def test_at_the_last_rung_loading_ends_with_what_would_help(planning, monkeypatch):
    run, placed = run_with(planning, [oom() for _ in range(200)], monkeypatch)
    with pytest.raises(UserError, match="no smaller plan is left"):
        placement.place(run, planning.plan)
    assert not placed and len({data["new"] for _, data in run.log.said}) == len(run.log.said) >= 3


def test_host_memory_refused_while_placing_leaves_the_host(planning, monkeypatch):
    on_host = replace(planning, plan=Plan(precision="float8", activations="host"))
    run, placed = run_with(on_host, [HostMemoryRefused("the system would not lock 300 MiB")], monkeypatch)
    placement.place(run, on_host.plan)
    assert placed[0].activations == "device" or placed[0].kept
    assert "host's memory: the system would not lock 300 MiB" in run.log.said[0][1]["why"]


def test_memory_in_pieces_is_laid_out_anew_once_before_the_plan_changes(planning, monkeypatch):
    run, placed = run_with(planning, [], monkeypatch)
    pieces = shortage(card(0.1, 23.3, 15.0), planning)
    placement.replan(run, "step", pieces)
    assert placed == [planning.plan] and run.log.said[0][0] == "log"
    placement.replan(run, "step", pieces)
    assert placed[-1] != planning.plan and run.log.said[-1][0] == "replanned"


@pytest.mark.parametrize("first", ["graphs", "pieces"])
def test_graphs_dropped_for_a_preview_and_memory_in_pieces_are_each_mended_before_the_plan_changes(
    planning, monkeypatch, first
):
    run, placed = run_with(planning, [], monkeypatch)
    pieces, full = shortage(card(0.1, 23.3, 15.0), planning), shortage(card(0.1, 23.3, 23.0), planning)
    run.experts.recorded = True  # they are again, with the next pass
    for why in (full, pieces) if first == "graphs" else (pieces, full):
        placement.replan(run, "preview", why)
    assert placed == [planning.plan] * 2
    assert ["graphs are dropped" in data["text"] for _, data in run.log.said] == [first == "graphs", first != "graphs"]
    placement.replan(run, "preview", pieces)
    assert placed[-1] != planning.plan and run.log.said[-1][0] == "replanned"
    placement.replan(run, "preview", full)
    assert placed[-1] == placed[-2], "the smaller plan has its own turn"


def test_no_room_for_the_optimizers_first_state_is_found_before_its_step(monkeypatch):
    """The same step is done again, one rung down, and nothing has changed in between."""
    parameter = torch.nn.Parameter(torch.ones(4))
    learner = Learner({"a": parameter}, torch.optim.AdamW([parameter]), None)
    fails, replans, attempts = [oom()], [], []

    def attempt() -> str:
        parameter.grad = torch.ones(4) if parameter.grad is None else parameter.grad + 1
        attempts.append(parameter.grad.clone())
        return "passed"

    def reserve(run, learner) -> None:
        if fails:
            raise fails.pop()

    monkeypatch.setattr(train_step, "reserve_state", reserve)
    monkeypatch.setattr(train_step, "replan", lambda run, exhausted, why: replans.append(exhausted))
    run = SimpleNamespace(placement=PLACEMENT, planning=None, team=None)
    assert train_step.retry_on_oom(run, learner, SimpleNamespace(current="transformer"), attempt) == "passed"
    assert (
        replans == ["step"]
        and torch.equal(attempts[0], attempts[1])
        and torch.equal(parameter.detach(), torch.ones(4))
        and not learner.optimizer.state
    )
    monkeypatch.undo()
    train_step.reserve_state(SimpleNamespace(job=JOB), learner)
    learner.optimizer.step()
    train_step.retry_on_oom(run, learner, SimpleNamespace(current=""), lambda: "passed")


def test_host_memory_that_is_not_there_is_refused_before_the_kernel_ends_a_process(monkeypatch):
    monkeypatch.setattr(pinned_memory, "free_ram", lambda: 2 * GIB)
    with pytest.raises(HostMemoryRefused, match=r"3\.0 GiB of RAM are needed, and 1\.8 GiB are free"):
        host_buffer(3 * GIB, pinned=True)
    with pytest.raises(HostMemoryRefused, match=r"no .* of RAM left"):
        host_buffer(2**60, pinned=False)


@pytest.mark.parametrize(
    ("part", "precision", "said", "helps"),
    [
        (
            "text encoder",
            "none",
            "while the text encoder was at work, which takes 9.0 GiB of the card: other programs took 8.0 GiB",
            'Set quantization.text_encoder = "float8", which takes 4.7 GiB; end other programs',
        ),
        ("text encoder", "float8", "which takes 4.7 GiB of the card", "End other programs on the card"),
        ("VAE", "float8", "while the VAE was at work, which takes 246 MiB", "End other programs on the card"),
        (
            "experts",
            "float8",
            "while the experts were loaded, which takes",
            'Choose a smaller target.rank; set training.optimizer = "adamw8bit"; end other programs',
        ),
    ],
)
def test_no_room_on_the_card_while_loading_says_what_takes_it_and_what_would_help(
    planning, monkeypatch, part, precision, said, helps
):
    monkeypatch.setattr(out_of_memory, "card_memory", lambda device: card(0.1, 15.4, 15.0))
    short = replace(planning, work=msgspec.structs.replace(planning.work, text_precision=precision))
    with pytest.raises(UserError) as e, loading(part, CPU, short):
        raise RuntimeError("CUDNN_STATUS_ALLOC_FAILED")
    assert said in e.value.what and e.value.fix.startswith(helps) and e.value.where == "the card's memory"


@pytest.mark.parametrize(
    "error",
    [
        HostMemoryRefused("336 MiB of RAM are needed, and 250 MiB are free"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_no_room_on_the_host_while_loading_says_what_all_of_it_takes(planning, error):
    with pytest.raises(UserError) as e, loading("experts", CPU, planning):
        raise error
    assert (
        "26.2 GiB for the frozen weights of 2 experts" in e.value.what
        and 'quantization.transformer = "qint4", which takes 14.7 GiB' in e.value.fix
    )
    assert not isinstance(error, HostMemoryRefused) or error.what in e.value.what


def test_other_errors_while_loading_stay_what_they_are(planning):
    for error in (RuntimeError("a bug"), UserError("holds no tensor", where="a file")):
        with pytest.raises(type(error)) as e, loading("VAE", CPU, planning):
            raise error
        assert e.value is error

"""Plans without page-locked memory: where the system locks too little of it, slower by a stated assumption, and no
other numbers."""

import msgspec
import pytest

from presets.planner.candidates import next_down
from presets.planner.cards import card_hardware, find_card, gpu_hardware
from presets.planner.choose import choose
from presets.planner.costs import Costs
from presets.planner.plan import Plan
from presets.planner.sizes import GIB
from presets.planner.workload import workload_of
from tests.helpers.facts import gpu, job, machine

WORK = workload_of(job())
CARD = card_hardware(find_card("4090"), ram=128 * GIB)


def limited(most: int | None):
    return msgspec.structs.replace(CARD, lockable=most)


def test_the_plan_locks_what_it_may_and_nothing_else():
    plain, none, plenty = (choose(WORK, limited(n)) for n in (None, 0, 500 * GIB))
    assert plain.plan.pinned and plenty.plan == plain.plan
    assert not none.plan.pinned and "not page-locked" in none.plan.text and "page-locked" not in plain.plan.text
    need = plain.prediction.ram_held["weights"] + plain.prediction.ram_held["activations"]
    assert (
        choose(WORK, limited(need)).plan.pinned and not Costs(WORK, limited(need - 1)).memory.locked(plain.plan).pinned
    )


def test_without_it_copies_take_longer_and_what_leaves_is_waited_for():
    costs, plan = Costs(WORK, CARD), Plan(precision="float8")
    slow = msgspec.structs.replace(plan, pinned=False)
    locked, unlocked = costs.time.step(plan), costs.time.step(slow)
    assert unlocked.copying > 2 * locked.copying and unlocked.copies > locked.copies
    assert unlocked.transformer == locked.transformer and costs.memory.ram(slow) == costs.memory.ram(plan)
    assert costs.memory.vram(slow) == costs.memory.vram(plan) and slow.rounds_as == plan.rounds_as
    inside = Plan(precision="float8", resident=40, kept=40, activations="device", slots=0)
    assert costs.time.step(inside).total == costs.time.step(msgspec.structs.replace(inside, pinned=False)).total


def test_a_refusal_to_lock_costs_nothing_but_that():
    plan = choose(WORK, CARD).plan
    lower = next_down(plan, WORK, CARD, exhausted="lock")
    assert lower == msgspec.structs.replace(plan, pinned=False)
    further = next_down(lower, WORK, CARD, exhausted="step")
    assert further is not None and not further.pinned, "what was refused is not asked for again"


@pytest.mark.parametrize("wsl", [False, True])
def test_on_wsl_nothing_is_sure_to_be_locked(wsl):
    here = msgspec.structs.replace(machine(gpu(24, name="NVIDIA GeForce RTX 4090", capability=(8, 9))), wsl=wsl)
    assert gpu_hardware(here.gpus[0], here).lockable == (0 if wsl else None)


def test_plans_of_older_checkpoints_are_locked():
    assert msgspec.json.decode(b"{}", type=Plan).pinned

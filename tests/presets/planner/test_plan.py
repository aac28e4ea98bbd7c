"""The plan as it lies in checkpoints and events of runs that were begun before."""

import msgspec

from presets.planner.plan import Plan


def test_plans_of_old_runs_are_read_and_new_ones_are_written_as_they_were():
    stored = {"precision": "float8", "resident": 4, "stash": "device", "stash_on_device": 3}
    plan = msgspec.convert(stored, Plan)
    assert (plan.activations, plan.activations_on_device) == ("device", 3)
    assert stored.items() <= msgspec.to_builtins(plan).items()
    one = msgspec.convert({"stash_on_device": 1}, Plan)  # that one alone stayed then
    assert one.staying(40) == 2 and "on the host but for 2 blocks" in one.text
    assert Plan().staying(1) == 1 and Plan().staying(0) == 0, "no more than there are"


def test_graphs_round_as_launched_blocks_do_that_recompute():
    launched = Plan(resident=8)
    assert Plan(resident=8, graphed=1536).rounds_as == launched.rounds_as
    kept = Plan(resident=8, kept=4)
    assert Plan(resident=8, kept=4, graphed=1536).rounds_as != kept.rounds_as, "the short ones keep none"
    assert Plan(resident=8, save_hidden=True).rounds_as != launched.rounds_as, "compiled to give more, or less"


def test_a_plan_of_before_hidden_states_were_saved_saves_none():
    """A checkpoint keeps its plan, and a resume follows it."""
    before = {name: value for name, value in msgspec.to_builtins(Plan()).items() if name != "save_hidden"}
    assert len(before) == len(msgspec.to_builtins(Plan())) - 1
    assert msgspec.convert(before, Plan) == Plan(save_hidden=False)

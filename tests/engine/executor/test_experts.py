"""A loaded run between its steps: experts off the device while a preview is decoded and back, a command that meets
a full disk."""

import pytest
import torch

from engine.system.stopwatch import Stopwatch
from engine.training import commands
from engine.training.train_step import gradients
from presets.planner import plan
from presets.planner.plan import Plan
from presets.runs.events import read_events
from tests.helpers.jobs import write_job
from tests.helpers.training.bench import Bench


@pytest.fixture(scope="module")
def bench(tiny, tmp_path_factory):
    bench = Bench(write_job(tmp_path_factory.mktemp("experts"), tiny, prompts=0))
    yield bench
    bench.run.loader.close()


def gradient(bench: Bench) -> dict[str, torch.Tensor]:
    parameters = bench.run.learners["high_noise"].parameters
    for p in parameters.values():
        p.grad = None
    assert gradients(bench.run, 0, "high_noise", Stopwatch(torch.device("cpu")))
    return {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}


@pytest.mark.parametrize("stay", [0, 1])
def test_parked_experts_come_back_with_the_host_memory_they_had(bench, stay, monkeypatch):
    monkeypatch.setattr(plan, "AT_THE_TURN", 0)  # the base has no more blocks than these
    experts = bench.run.experts
    experts.set_plan(Plan(activations="host", activations_on_device=stay, compiled=False))
    before = gradient(bench)
    held = {block: buffer.data_ptr() for block, buffer in experts.resources.activations._host.items()}
    with experts.parked():
        assert not experts.executors and experts.resources is None
    after = gradient(bench)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert held and held == {block: buffer.data_ptr() for block, buffer in experts.resources.activations._host.items()}


def test_another_plan_has_activations_of_its_own(bench):
    experts = bench.run.experts
    experts.set_plan(Plan(activations="host", compiled=False))
    activations = experts.resources.activations
    experts.set_plan(Plan(activations="host", activations_on_device=3, compiled=False))
    assert experts.resources.activations is not activations and experts.resources.activations.stay == 3


def test_an_order_is_kept_until_its_answer_is_on_the_disk(bench, monkeypatch):
    """The disk is full as it is honoured: killed then, the next attempt must find it."""
    run = bench.run
    file = run.control.folder / "1.json"
    file.write_text('{"id": "one", "command": "set", "field": "save.every", "value": "7"}')
    plain = run.log.flush
    monkeypatch.setattr(run.log, "flush", lambda: False)
    for _ in range(2):
        commands.apply_commands(run, 1)
        assert run.job.save.every == 7 and file.exists()
    monkeypatch.setattr(run.log, "flush", plain)
    commands.apply_commands(run, 1)
    assert not file.exists()
    told = [e for e, _ in read_events(bench.folder / "events.jsonl") if e.kind == "changed"]
    assert [e.data["order"] for e in told] == ["one"], "applied once"

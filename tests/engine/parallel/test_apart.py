"""Experts that train apart: how far they go before they meet, and the order of the events."""

from types import SimpleNamespace

import pytest

from engine.training.train_step import StepTaken
from engine.training.trainer import StepsInOrder, end_of_turns
from presets.job.schema import DatasetPanel, Job, JobPanel, ModelPanel
from presets.job.toml_file import with_value

JOB = Job(job=JobPanel(name="t"), model=ModelPanel(path="base"), datasets=[DatasetPanel(path="clips")])


def run_of(*ahead: int, **values: object) -> SimpleNamespace:
    job: Job = with_value(with_value(JOB, "multistage.switch_every", 10), "training.steps", 100)
    for field, value in values.items():
        job = with_value(job, field.replace("__", "."), value)
    return SimpleNamespace(job=job, ahead=[SimpleNamespace(step=step) for step in ahead], held_out=[])


@pytest.mark.parametrize(
    ("run", "ends"),
    [
        (run_of(), [20, 40, 60, 80, 100]),
        (run_of(save__every=25), [20, 25, 40, 50, 70, 75, 90, 100]),
        (run_of(save__every=30), [20, 30, 50, 60, 80, 90, 100]),
        (run_of(7, 20), [7, 20, 40, 60, 80, 100]),
        (run_of(training__steps=33), [20, 33]),
        (run_of(multistage__switch_every=1, training__steps=6), [2, 4, 6]),
        (run_of(multistage__high__share=3.0, training__steps=80), [40, 80]),
    ],
)
def test_they_meet_after_a_turn_of_each_and_wherever_both_are_needed(run: SimpleNamespace, ends: list[int]):
    step, found = 0, []
    while step < run.job.training.steps:
        step = end_of_turns(run, step)
        found.append(step)
    assert found == ends


def taken(step: int, *, finite: bool = True) -> StepTaken:
    """Step `step`, counted from 0."""
    return StepTaken({"step": step + 1, "clips": ["a"]}, [500.0], finite)


class Log:
    def __init__(self) -> None:
        self.said: list[tuple[str, int]] = []
        self.history = SimpleNamespace(skipped=set(), bad_in_a_row=lambda step: self.bad)
        self.bad = 1

    def emit(self, kind: str, *, step: int, **_: object) -> None:
        self.said.append((kind, step))

    def finding(self, _: object, *, step: int) -> None:
        self.said.append(("finding", step))


def test_events_are_written_in_the_order_of_the_steps_as_soon_as_it_is_known():
    log = Log()
    told = StepsInOrder(SimpleNamespace(log=log), 4)
    for step, written in ((6, []), (7, []), (4, [5]), (5, [5, 6, 7, 8])):
        told.tell(taken(step))
        assert [n for _, n in log.said] == written
    assert told.next == 8 and not told.waiting


def test_one_step_too_many_that_is_not_finite_ends_the_events_there():
    log = Log()
    told = StepsInOrder(SimpleNamespace(log=log), 0)
    log.bad = 3
    told.tell(taken(0, finite=False))
    told.tell(taken(1))
    assert log.said == [("finding", 1)] and told.ends_with is not None and "3 steps in a row" in str(told.ends_with)

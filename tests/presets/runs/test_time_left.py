"""The one estimate of the time that a run still takes, held against runs that are played out."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from presets.errors import UserError
from presets.facts.held_out import validates
from presets.job.expert_schedule import expert_at
from presets.job.preview_settings import previews_due
from presets.job.schema import (
    DatasetPanel,
    Job,
    JobPanel,
    MultistagePanel,
    PromptPanel,
    SamplePanel,
    SavePanel,
    TrainingPanel,
    ValidationPanel,
)
from presets.job.toml_file import job_to_dict
from presets.runs.events import Event
from presets.runs.run_view import RunView, apply_all, apply_event
from presets.runs.spent import pace
from presets.runs.time_left import PlannedTime, planned_left, seconds_left

PREVIEW, SAVE, LOAD, SWAP, COMPILE, MEASURE = 45.0, 4.0, 90.0, 6.0, 30.0, 40.0  # seconds
PACE = {"high_noise": 1.0, "low_noise": 1.6}


def job(
    steps: int = 1000,
    *,
    prompts: int = 2,
    every: int = 100,
    switch_every: int = 10,
    first: bool = True,
    measured: int = 0,
) -> Job:
    return Job(
        job=JobPanel(name="n"),
        datasets=[DatasetPanel(path="clips")],
        training=TrainingPanel(steps=steps),
        multistage=MultistagePanel(switch_every=switch_every),
        sample=SamplePanel(prompts=[PromptPanel(prompt="p")] * prompts, every=every, first=first),
        save=SavePanel(every=200),
        validation=ValidationPanel(fraction=0.1, every=measured) if measured else ValidationPanel(),
    )


class Played:
    """The events of a run whose every part takes a known time."""

    def __init__(self, job: Job, *, slower: Callable[[int], float] = lambda step: 1.0, swap: float = 0.0) -> None:
        self.job, self.now, self.attempt, self.events = job, 1e9, 0, list[Event]()
        self.tables: dict[str, Any] = job_to_dict(job)
        self._slower, self._swap, self._random = slower, swap, random.Random(7)

    def add(self, kind: str, took: float = 0.0, /, **data: Any) -> None:
        self.now += took
        seq = len(self.events) + 1
        self.events.append(Event(seq=seq, time=self.now, run="r", attempt=self.attempt, kind=kind, data=data))  # type: ignore[arg-type]

    def play(self, begin: int = 0, until: int | None = None) -> "Played":
        """One attempt, to the end or to a stop after step `until`."""
        self.attempt += 1
        done, steps, last = begin, self.job.training.steps, ""
        self.add("phase", name="loading", done=0, total=1, text="")
        self.add(
            "started",
            LOAD,
            name="n",
            job=self.tables,
            plan="p",
            device="d",
            steps=steps,
            resumed_from=begin,
            versions={},
        )
        if begin == 0 and validates(self.job):
            self.measure(0)
        if begin == 0 and previews_due(self.job, 0):
            self.previews(0)
        seen = set()
        while done < (until or steps):
            expert = expert_at(self.job, done)
            seconds = PACE[expert] * self._slower(done) * self._random.uniform(0.9, 1.1)
            seconds += self._swap if last != expert and expert in seen else 0.0
            seconds += 0.0 if expert in seen else COMPILE
            seen.add(expert)
            done, last = done + 1, expert
            self.add(
                "step", seconds, step=done, expert=expert, loss=1.0, lr=1e-4, grad_norm=1.0, timestep=1.0,
                seconds={"total": seconds}, vram_gib=1.0, ram_gib=1.0,
            )  # fmt: skip
            if done % self.job.save.every == 0:
                self.save(done)
            if validates(self.job) and done % self.job.validation.every == 0:
                self.measure(done)
            if done < steps and previews_due(self.job, done):
                self.previews(done)
        if until is None:
            if done % self.job.save.every:
                self.save(done)
            if validates(self.job) and done % self.job.validation.every:
                self.measure(done)
            if self.job.sample.prompts:
                self.previews(done)
            self.add("done", step=done, files=["a"], seconds=1.0)
        else:
            self.save(done)
            self.add("stopped", step=done, why="asked")
        return self

    def measure(self, step: int) -> None:
        for part in range(4):
            self.add("phase", MEASURE / 4 if part else 0.0, name="validating", text="", done=part, total=4)
        one = {"loss": 0.5, "error": None, "edges": [0, 1], "bins": [0.5], "clips": [0.5]}
        data = {"of": "", "clips": ["a"], "experts": {"low_noise": one}, "seconds": MEASURE}
        self.add("validation", MEASURE / 4, step=step, **data)

    def save(self, step: int) -> None:
        self.add("phase", name="saving", done=0, total=1, text="checkpoint")
        self.add("checkpoint", SAVE, step=step, path=f"c{step}")

    def previews(self, step: int) -> None:
        prompts = len(self.job.sample.prompts)
        for i in range(prompts):
            for part in range(5):
                name = {"name": "sampling", "text": "", "done": 5 * i + part, "total": 5 * prompts}
                self.add("phase", PREVIEW / 5, **name)
            self.add("sample", step=step, path=f"s{step}/{i}", poster="", prompt="p", seed=i)

    def predictions(self, planned: PlannedTime | None = None) -> list[tuple[int, float | None, float]]:
        """After each event: the step, what is predicted to be left, and what it takes."""
        view, out = RunView(), []
        for event in self.events:
            apply_event(view, event)
            out.append((view.step, seconds_left(view, planned), self.events[-1].time - event.time))
        return out


@pytest.mark.parametrize("switch_every", [1, 10, 100])
@pytest.mark.parametrize("swap", [0.0, 5.0])
def test_what_is_predicted_is_what_it_takes(switch_every: int, swap: float):
    found = Played(job(switch_every=switch_every), swap=swap).play().predictions()
    for tenth in (1, 5, 9)[switch_every == 100 :]:  # the second expert has its first turn at 10%
        all_at = [(left, takes) for step, left, takes in found if step == 100 * tenth]
        assert len(all_at) > 10, "also among the previews"
        for left, takes in all_at:
            assert left == pytest.approx(takes, rel=0.05, abs=10), (tenth, left, takes)


@pytest.mark.parametrize("measured", [50, 80])
def test_measurements_of_the_held_out_loss_are_reckoned_with(measured: int):
    run = Played(job(measured=measured)).play()
    found = run.predictions()
    for tenth in (2, 5, 9):
        for left, takes in [(left, takes) for step, left, takes in found if step == 100 * tenth]:
            assert left == pytest.approx(takes, rel=0.05, abs=15), (tenth, left, takes)
    planned = PlannedTime(1.3, 0.0, preview=PREVIEW, save=SAVE, validation=MEASURE)
    early = next((left, takes) for step, left, takes in run.predictions(planned) if step == 20)
    assert early[0] == pytest.approx(early[1], rel=0.05)


def test_before_anything_was_measured_the_plan_counts():
    run = Played(job()).play()
    steps = sum(PACE.values()) / 2
    planned = PlannedTime(steps, 11 * 2 * PREVIEW + 5 * SAVE, preview=PREVIEW, save=SAVE)
    found = run.predictions(planned)
    assert found[1][1] == pytest.approx(found[1][2], rel=0.05)
    early = next((left, takes) for step, left, takes in found if step == 20)
    assert early[0] == pytest.approx(early[1], rel=0.05)
    assert seconds_left(RunView()) is None


def test_a_first_step_that_compiles_says_nothing_of_the_others():
    run = Played(job()).play()
    planned = PlannedTime(sum(PACE.values()) / 2, preview=PREVIEW, save=SAVE)
    after = {step: (left, takes) for step, left, takes in run.predictions(planned) if step in (1, 2)}
    for left, takes in after.values():
        assert left == pytest.approx(takes, rel=0.1)
    assert pace([31.0, 1.0]) == 1.0


def test_a_run_that_was_stopped_has_worked_without_the_night_between():
    run = Played(job())
    run.play(until=500)
    worked = run.now - 1e9
    stopped = RunView()
    apply_all(stopped, run.events)
    assert stopped.spent.worked == pytest.approx(worked) and seconds_left(stopped) == pytest.approx(
        LOAD + 500 * 1.3 + 5 * 2 * PREVIEW + 3 * SAVE, rel=0.05
    )
    run.now += 40_000
    began = run.now
    run.play(begin=500)
    view = RunView()
    apply_all(view, run.events)
    assert view.spent.worked == pytest.approx(worked + run.now - began)
    resumed = [(left, takes) for step, left, takes in run.predictions() if step == 510]
    assert resumed[-1][0] == pytest.approx(resumed[-1][1], rel=0.05)
    loading = run.predictions()[len(stopped.log) and next(i for i, e in enumerate(run.events) if e.attempt == 2)]
    assert loading[1] == pytest.approx(loading[2] - 2 * COMPILE, rel=0.05), "it loads as long as it did before"


@pytest.mark.parametrize("factor", [0.5, 2.0, 5.0])
def test_another_pace_is_told_within_a_few_steps(factor: float):
    run = Played(job(prompts=0, switch_every=1), slower=lambda step: factor if step >= 600 else 1.0).play()
    after = next((left, takes) for step, left, takes in run.predictions() if step == 609)
    assert after[0] == pytest.approx(after[1], rel=0.1)


def test_previews_that_are_commanded_come_on_top_while_they_are_made():
    run = Played(job(prompts=2, every=100)).play(until=150)
    del run.events[-3:]  # the stop
    view = RunView()
    apply_all(view, run.events)
    before = seconds_left(view)
    run.previews(150)
    apply_all(view, run.events[:-11])
    during = seconds_left(view)
    assert before is not None and during is not None
    apply_all(view, run.events[:-6])  # the first of both is made
    assert during - before == pytest.approx(2 * PREVIEW, rel=0.2)
    assert during - (seconds_left(view) or 0.0) == pytest.approx(PREVIEW, rel=0.5)


def test_the_clock_that_counts_within_a_step():
    run = Played(job(prompts=0))
    run.play(until=300)
    del run.events[-3:]
    view = RunView()
    apply_all(view, run.events)
    whole = seconds_left(view)
    assert whole is not None
    assert seconds_left(view, quiet=0.5) == pytest.approx(whole - 0.5)
    assert seconds_left(view, quiet=500.0) == pytest.approx(whole - view.seconds_per_step), "a step that hangs"


def test_steps_one_by_one_and_all_at_once_add_up_to_the_same():
    run = Played(job(), swap=3.0)
    run.play(until=300)
    run.play(begin=300)
    whole, one_by_one = RunView(), RunView()
    apply_all(whole, run.events)
    for event in run.events:
        apply_event(one_by_one, event)
    assert whole == one_by_one


def test_a_clock_that_is_set_back_takes_nothing_away():
    run = Played(job(prompts=0))
    run.play(until=100)
    worked = run.now - 1e9
    for event in run.events[50:]:
        event.time -= 3600
    view = RunView()
    apply_all(view, run.events)
    assert worked - 5 < view.spent.worked <= worked


def test_clips_of_several_sizes_are_no_exceptions():
    random.seed(1)
    recent = [random.choice([1.0, 1.0, 1.0, 10.0]) for _ in range(60)]
    assert pace(recent) == pytest.approx(sum(recent) / 60)
    assert pace([2.0] * 40 + [60.0] + [2.0] * 5) == 2.0
    assert pace([2.0] * 40 + [4.0] * 3) < 3 and pace([2.0] * 40 + [4.0] * 4) == 4.0
    assert pace([40.0, 2.0, 2.0, 40.0, 2.0, 2.0]) == 2.0
    assert pace([]) == 0.0


def test_a_run_that_has_told_nothing():
    assert planned_left(None, 0.0, 100, 0) is None
    assert planned_left(PlannedTime(2.0, 50.0), 0.0, 100, 50) == 125
    with pytest.raises(UserError):
        PlannedTime(1.0, disk=-1).require_sound()

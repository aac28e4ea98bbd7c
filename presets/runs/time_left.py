"""How long a run still takes: each expert's steps at their own recent pace, the previews and saves that are still to
come at what they have taken so far, before the first of them at what the plan predicts. The one place where that is
said; what was measured is presets.runs.spent's.
"""

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from presets.errors import UserError
from presets.job.expert_schedule import EXPERTS, high_steps, part_of
from presets.job.schema import MultistagePanel
from presets.runs.spent import BEFORE_STEPS, CACHING, FIRST, PAUSED, SAMPLING, SAVING, TRAINING, VALIDATING, pace

if TYPE_CHECKING:
    from presets.runs.run_view import RunView

LONGEST = 1e9  # seconds
MOST_BYTES = 2**60
FEW_STEPS = 3  # of fewer the first, which compiles, may be all that there is


class PlannedTime(Struct, frozen=True):
    """What the planner expects a run to take, in seconds."""

    step: float  # of each step
    rest: float = 0.0  # of the whole run, besides its steps: previews, checkpoints, compilation
    preview: float = 0.0  # of each preview; 0: not known, or there are none
    save: float = 0.0  # of each checkpoint; 0: not known
    validation: float = 0.0  # of each measurement of the held-out loss; 0: not known, or there are none
    disk: int = 0  # bytes that the run has on disk at its fullest; 0: not known

    def require_sound(self) -> None:
        """Raises UserError."""
        seconds = (self.step, self.rest, self.preview, self.save, self.validation)
        if not all(0 <= s < LONGEST for s in seconds) or not 0 <= self.disk < MOST_BYTES:
            raise UserError("is no time that a run can take", where=f"{self.step} s a step, {self.rest} s besides")


class ToCome(Struct, kw_only=True):
    """What of a job says whose turn a step is, and how many previews a set has."""

    part: tuple[int, int]  # the high-noise expert's part of the turns
    switch_every: int
    prompts: int
    first: bool  # whether there is a set before the first step
    measured_every: int = 0  # steps between measurements of the held-out loss; 0: there are none


def to_come(job: dict[str, Any]) -> ToCome | None:
    """Of a job's tables; None when they do not say it."""
    try:
        panel = msgspec.convert(job["multistage"], MultistagePanel)
        prompts, first = len(job["sample"]["prompts"]), bool(job["sample"].get("first", True))
        held = job.get("validation", {})
        measured = int(held["every"]) if held.get("fraction") or str(held.get("path", "")).strip() else 0
    except (ValueError, LookupError, TypeError, AttributeError):  # msgspec's are ValueErrors
        return None
    return ToCome(
        part=part_of(panel).as_integer_ratio(),
        switch_every=panel.switch_every,
        prompts=prompts,
        first=first,
        measured_every=measured,
    )


def planned_left(planned: PlannedTime | None, each: float, steps: int, done: int) -> float | None:
    """Of a run that has told nothing but, perhaps, its pace (`each`; 0: not even that)."""
    each = each or (planned.step if planned else 0.0)
    if not each or not steps:
        return None
    left = max(0, steps - done)
    return left * each + (planned.rest * left / steps if planned else 0.0)


def seconds_left(view: "RunView", planned: PlannedTime | None = None, *, quiet: float = 0.0) -> float | None:
    """Of a run that goes on, or of one that stands if it went on now; None when nothing is known yet. `quiet`: seconds
    since its last event."""
    each = view.seconds_per_step
    if not each and not view.spent.costs:
        known = planned_left(planned, 0.0, view.steps, view.step)
        return None if known is None else known + _before_steps(view, quiet)
    return (
        _steps(view, planned, quiet)
        + _previews(view, planned, quiet)
        + _saves(view, planned, quiet)
        + _measurements(view, planned, quiet)
        + _unmeasured(view, planned)
        + _before_steps(view, quiet)
    )


def _steps(view: "RunView", planned: PlannedTime | None, quiet: float) -> float:
    spent, left = view.spent, max(0, view.steps - view.step)
    usual = _pace(view.recent, planned)
    if view.to_come is None:
        total = left * usual
    else:
        part, every = Fraction(*view.to_come.part), view.to_come.switch_every
        high = high_steps(part, every, view.steps) - high_steps(part, every, view.step)
        total = 0.0
        for expert, steps in zip(EXPERTS, (high, left - high), strict=True):
            each = _pace(costs, planned) if (costs := spent.costs.get(expert)) else usual
            total += steps * each
            if first := pace(spent.costs.get(expert + FIRST, [])):
                turns = min(part, 1 - part) * left / every  # turns of the one that has fewer lie apart
                total += float(turns) * max(0.0, first - each)
    return max(0.0, total - (min(quiet, usual) if left and view.phase.name == TRAINING else 0.0))


def _pace(measured: list[float], planned: PlannedTime | None) -> float:
    """Seconds each; 0.0 while nothing is known. One or two steps, of which the first has compiled, tell little: what
    was planned counts as another one."""
    return pace([planned.step, *measured] if planned and planned.step and len(measured) < FEW_STEPS else measured)


def _previews(view: "RunView", planned: PlannedTime | None, quiet: float) -> float:
    spent, every = view.spent, view.settings.get("sample.every")
    come = view.to_come
    prompts = come.prompts if come else 0
    at_work = view.phase.name == SAMPLING and view.phase.total > 0
    already = spent.since_step.get(SAMPLING, 0.0) + (quiet if at_work else 0.0)
    each, progress = spent.mean(SAMPLING), view.phase.done / view.phase.total if at_work else 0.0
    if each is None and prompts and progress > 0:
        each = already / min(1.0, progress) / prompts
    if each is None:
        each = planned.preview if planned else 0.0
    if not prompts or not each:
        return already * (1 - progress) / progress if 0 < progress < 1 else 0.0
    sets = 0
    if view.step < view.steps:
        sets = 1 + _due(every, view.step, view.steps - 1)
    missing = 0
    if view.step == view.steps or _due(every, view.step - 1, view.step) if view.step else come and come.first:
        missing = max(0, prompts - _made(view))
    elif at_work:  # the first, or commanded
        missing = max(0, prompts - spent.previews)
    now = max(0.0, missing * each - max(0.0, already - spent.previews * each) if at_work else missing * each)
    return sets * prompts * each + now


def _saves(view: "RunView", planned: PlannedTime | None, quiet: float) -> float:
    spent, every = view.spent, view.settings.get("save.every")
    each = spent.mean(SAVING)
    if each is None:
        each = planned.save if planned else 0.0
    if not isinstance(every, int) or every < 1 or not each:
        return 0.0
    coming = _due(every, view.step, view.steps) + (view.steps % every > 0 and view.step < view.steps)
    last = view.checkpoints[-1].step if view.checkpoints else 0
    due = view.step > 0 and last != view.step and (view.step % every == 0 or view.step == view.steps)
    already = spent.since_step.get(SAVING, 0.0) + quiet if view.phase.name == SAVING else 0.0
    return coming * each + (max(0.0, each - already) if due else 0.0)


def _measurements(view: "RunView", planned: PlannedTime | None, quiet: float) -> float:
    """Of the held-out loss: every so many steps, and at the end."""
    spent, every = view.spent, view.to_come.measured_every if view.to_come else 0
    each = spent.mean(VALIDATING)
    if each is None:
        each = planned.validation if planned else 0.0
    if every < 1 or not each:
        return 0.0
    coming = 1 + _due(every, view.step, view.steps - 1) if view.step < view.steps else 0
    made = bool(view.measured) and view.measured[-1].step == view.step
    due = not made and (view.step % every == 0 or view.step == view.steps)
    already = spent.since_step.get(VALIDATING, 0.0) + quiet if view.phase.name == VALIDATING else 0.0
    return coming * each + (max(0.0, each - already) if due else 0.0)


def _unmeasured(view: "RunView", planned: PlannedTime | None) -> float:
    """What a plan predicts in one sum: its part of the steps that are left."""
    measured = view.spent.costs.keys() & {SAMPLING, SAVING, VALIDATING}
    if planned is None or planned.preview or planned.save or planned.validation or measured or not view.steps:
        return 0.0
    return planned.rest * max(0, view.steps - view.step) / view.steps


def _before_steps(view: "RunView", quiet: float) -> float:
    """Loading and caching, of an attempt that has made no step yet."""
    spent, phase = view.spent, view.phase
    if phase.name == "ending":
        return 0.0 if view.state == "done" else spent.mean(BEFORE_STEPS) or 0.0
    if spent.seen:
        return 0.0
    if phase.name == CACHING:
        already = spent.since_step.get(CACHING, 0.0) + quiet
        return already * (phase.total - phase.done) / phase.done if 0 < phase.done < phase.total else 0.0
    if spent.doing in (SAMPLING, SAVING, VALIDATING, PAUSED, TRAINING):
        return 0.0
    already = spent.since_step.get(BEFORE_STEPS, 0.0) + quiet
    return max(0.0, (spent.mean(BEFORE_STEPS) or 0.0) - already)


def _due(every: Any, after: int, until: int) -> int:
    """How often a multiple of `every` comes after step `after`, up to `until`."""
    return max(0, until // every - after // every) if isinstance(every, int) and every > 0 else 0


def _made(view: "RunView") -> int:
    """The previews of the step that the run stands at."""
    return sum(s.step == view.step for s in view.samples[-64:])

"""Where the time of a run goes, added up from its events: each step's, by expert, and what comes between steps. What
that says about the time to come is presets.runs.time_left's.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from statistics import median_low

from msgspec import Struct, field

from presets.runs.alike_steps import AnySteps

KEPT = 60  # of a kind
UNUSUAL = 4  # times the median: a step that compiled, or waited for something
EARLY, FEW_EARLY, FEW = 15, 3, 1  # how many of them are left out: of fewer than so many steps, and of more
AFTER, BEFORE = 4, 5  # steps that tell another pace, and of the one before
OTHER = 0.1  # by how much of it another pace differs at least
MOST_KINDS = 24
FIRST = " first"  # behind an expert's name: the first step of a turn, which may have to bring the expert in
BEFORE_STEPS = "loading"  # all that comes before the first step and is nothing else
TRAINING, SAVING, SAMPLING, CACHING, PAUSED = "training", "saving", "sampling", "caching", "paused"
VALIDATING = "validating"
OWN = frozenset({TRAINING, SAVING, SAMPLING, VALIDATING, CACHING, PAUSED})


class Spent(Struct, kw_only=True):
    """Seconds by the events' clock."""

    worked: float = 0.0  # in all, while a trainer was at work: of all attempts
    at: float = 0.0  # the last event
    attempt: int = 0
    doing: str = BEFORE_STEPS  # what the time until the next event goes to
    since_step: dict[str, float] = field(default_factory=dict)  # what was done since the last step
    previews: int = 0  # made since the last step
    saves: int = 0
    measurements: int = 0  # of the held-out loss
    expert: str = ""  # of the last step of this attempt
    seen: list[str] = field(default_factory=list)  # the experts that have made a step in this attempt
    # of each kind the last ones: an expert's steps, the first ones of its turns, a preview, a save, an attempt's
    # loading
    costs: dict[str, list[float]] = field(default_factory=dict)

    def mean(self, kind: str) -> float | None:
        """Of the last three of a kind; None when none was measured."""
        last = self.costs.get(kind, [])[-3:]
        return math.fsum(last) / len(last) if last else None

    def phase(self, time: float, attempt: int, name: str) -> None:
        """A phase begins or gets on. What comes before the first word about previews is a part of them."""
        self._pass(time, attempt, SAMPLING if name == SAMPLING else "")
        self.doing = name if name in OWN else BEFORE_STEPS

    def sample(self, time: float, attempt: int) -> None:
        """A preview is made."""
        self._pass(time, attempt, SAMPLING)
        self.doing, self.previews = SAMPLING, self.previews + 1

    def checkpoint(self, time: float, attempt: int) -> None:
        """A checkpoint is written. The event of one that an earlier attempt wrote comes before any step."""
        self._pass(time, attempt, SAVING if self.seen else "")
        if self.seen:
            self.doing, self.saves = SAVING, self.saves + 1

    def measurement(self, time: float, attempt: int) -> None:
        """The held-out loss is measured."""
        self._pass(time, attempt, VALIDATING)
        self.doing, self.measurements = VALIDATING, self.measurements + 1

    def other(self, time: float, attempt: int) -> None:
        """Any other event."""
        self._pass(time, attempt, "")

    def step(self, time: float, attempt: int, expert: str, seconds: float, turns: bool) -> None:
        """A step that took `seconds`. `turns`: more than one step in a row is of the same expert."""
        self._pass(time, attempt, "")
        since, doing = self.since_step, self.doing
        if doing == TRAINING:
            if len(since) == 1:
                seconds = max(seconds, since[TRAINING])
        else:  # what comes before the step, and after the last word about it, is of what was done
            since[doing] = max(0.0, since[doing] - seconds)
        if len(since) > 1 or doing != TRAINING:
            self._close()
        since.clear()
        self.doing = TRAINING
        if self.expert != expert:
            if expert not in self.seen:
                self.seen = [*self.seen, expert][-MOST_KINDS:]  # what it compiles is no cost of turns
            elif turns:
                self.expert = expert
                self._note(expert + FIRST, seconds)
                return
            self.expert = expert
        self._note(expert, seconds)

    def steps(self, lines: AnySteps, took: Sequence[float], *, turns: bool) -> list[int]:
        """As `step` for each of steps in a row, which took so many seconds, and several times quicker. Where in them
        the expert is another one than before, from 0 on."""
        changes = [0]
        first, rest = lines[0], lines[1:]
        expert = first.data.expert
        self.step(first.time, first.attempt, expert, took[0], turns)
        if lines[-1].attempt != first.attempt:
            for i, (line, seconds) in enumerate(zip(rest, took[1:], strict=True), 1):
                if line.data.expert != expert:
                    expert = line.data.expert
                    changes.append(i)
                self.step(line.time, line.attempt, expert, seconds, turns)
            return changes
        worked, at = self.worked, self.at
        of_each = {expert: self._costs_of(expert).append}
        add = of_each[expert]
        for i, line in enumerate(rest, 1):
            seconds, time, data = took[i], line.time, line.data
            passed, at = time - at, time
            if passed > 0.0:
                worked += passed
                if passed > seconds:
                    seconds = passed
            if data.expert != expert:
                expert = data.expert
                changes.append(i)
                add = of_each.get(expert) or of_each.setdefault(expert, self._costs_of(expert).append)
                if expert not in self.seen:
                    self.seen = [*self.seen, expert][-MOST_KINDS:]
                elif turns:
                    self._costs_of(expert + FIRST).append(seconds)
                    continue
            add(seconds)
        self.worked, self.at, self.expert = worked, at, expert
        for costs in self.costs.values():
            del costs[:-KEPT]
        return changes

    def _pass(self, time: float, attempt: int, claim: str) -> None:
        if attempt != self.attempt:
            self.attempt, self.at, self.doing, self.expert = attempt, time, BEFORE_STEPS, ""
            self.since_step, self.seen, self.previews, self.saves, self.measurements = {}, [], 0, 0, 0
        passed = max(0.0, time - self.at)  # the clock may have been set back
        self.at = time
        self.worked += passed
        kind = claim if claim and self.doing != PAUSED else self.doing
        self.since_step[kind] = self.since_step.get(kind, 0.0) + passed

    def _close(self) -> None:
        """The steps go on: what was done before is over."""
        since = self.since_step
        if self.saves:
            self._note(SAVING, since.get(SAVING, 0.0) / self.saves)
        if self.previews:
            self._note(SAMPLING, since.get(SAMPLING, 0.0) / self.previews)
        if self.measurements:
            self._note(VALIDATING, since.get(VALIDATING, 0.0) / self.measurements)
        if not self.seen:
            self._note(BEFORE_STEPS, math.fsum(s for kind, s in since.items() if kind not in OWN))
        self.previews = self.saves = self.measurements = 0

    def _note(self, kind: str, seconds: float) -> None:
        costs = self._costs_of(kind)
        costs.append(seconds)
        if len(costs) > KEPT:
            del costs[0]

    def _costs_of(self, kind: str) -> list[float]:
        """To be added to; of one kind too many they are nobody's."""
        costs = self.costs.get(kind)
        if costs is None:
            costs = []
            if len(self.costs) < MOST_KINDS:
                self.costs[kind] = costs
        return costs


def pace(recent: list[float]) -> float:
    """Seconds each: the mean, without the few that compiled or waited for something; of the last ones alone when these
    are all longer, or all shorter, than those before."""
    if not recent:
        return 0.0
    most = UNUSUAL * median_low(recent)  # of two, one that compiled is the unusual one
    usual = [s for s in recent if s <= most]
    if len(recent) - len(usual) > (FEW_EARLY if len(recent) < EARLY else FEW):  # clips of several sizes, perhaps
        usual = recent
    usual = usual[_change(usual) :]
    return math.fsum(usual) / len(usual)


def _change(recent: list[float]) -> int:
    """Where the pace changed for good; 0 when it did not."""
    if len(recent) < BEFORE + AFTER:
        return 0
    first, last = sorted(recent[:BEFORE]), recent[-AFTER:]
    low, high = first[:2], first[-2:]
    if min(last) <= high[0] * (1 + OTHER) and max(last) >= low[1] * (1 - OTHER):
        return 0  # as at first, so there is nothing to look for
    least, most = list(accumulate(reversed(recent), min))[::-1], list(accumulate(reversed(recent), max))[::-1]
    for i in range(BEFORE, len(recent) - AFTER + 1):
        # one before may have been an exception
        if least[i] > high[0] * (1 + OTHER) or most[i] < low[1] * (1 - OTHER):
            return i
        low, high = sorted([*low, recent[i]])[:2], sorted([*high, recent[i]])[1:]
    return 0

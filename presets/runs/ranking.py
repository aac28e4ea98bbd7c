"""Which checkpoint of a run is best, by its held-out loss: paired differences between measurements of the same clips at
the same noise, each with its standard error. Pure functions; without measurements nothing is claimed.

The measurements are made by engine.training.validation, come in `validation` events, and lie in
`presets.runs.run_view.RunView.measured`. `rank(view.measured, ...)` is what run, screens, commands and reports say.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

from msgspec import Struct, field

# two-sided 95% points of Student's t with 1, 2 .. degrees of freedom; from 11 on it is 1.96 + 2.5 / degrees
CRITICAL = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
MOST_MEASURED = 200  # measurements that a view keeps

Verdict = Literal["best", "alike", "worse"]


class Measure(Struct, kw_only=True):
    """Held-out loss after a step. What can be paired has the same `of`: same clips in the same order, same noise."""

    step: int
    of: str = ""
    losses: dict[str, list[float]]  # expert -> of each clip the mean over its noise levels; inf: not finite
    bins: dict[str, list[float]] = field(default_factory=dict)  # expert -> of each noise bin the mean over the clips

    @property
    def by_clip(self) -> list[float]:
        """Of each clip the mean over the experts."""
        return [math.fsum(of_clip) / len(of_clip) for of_clip in zip(*self.losses.values(), strict=True)]

    @property
    def loss(self) -> float:
        return mean(self.by_clip)

    @property
    def finite(self) -> bool:
        return bool(self.losses) and math.isfinite(self.loss)


class Kept(Struct, frozen=True, kw_only=True):
    """Of which steps LoRA files are left, as the trainer said when it last removed some."""

    oldest: int = 0  # the first step that has a checkpoint; 0: nothing was removed, or nobody said
    best: int = 0  # an earlier step whose files stay for their held-out loss; 0: none

    def of(self, saved: Iterable[int]) -> set[int]:
        """Those of the saved steps that can be had."""
        return {step for step in saved if step >= self.oldest or step == self.best}


class Difference(Struct, frozen=True, kw_only=True):
    """How much higher the loss is than at another step, in the mean over the clips."""

    mean: float
    error: float | None  # standard error of this mean; None of one clip
    clips: int

    @property
    def errors(self) -> float | None:
        """The difference in standard errors; None where there is none to measure by."""
        if self.error is None:
            return None
        return self.mean / self.error if self.error else math.copysign(math.inf, self.mean) if self.mean else 0.0

    @property
    def higher(self) -> bool:
        """Whether chance alone would hardly make it so much higher: in less than one of forty cases."""
        return self.errors is not None and self.errors > critical(self.clips)

    @property
    def lower(self) -> bool:
        return self.errors is not None and self.errors < -critical(self.clips)

    @property
    def text(self) -> str:
        """`+0.0042, 3.1 standard errors`"""
        if self.errors is None:
            return f"{self.mean:+.2g}, of one clip"
        size = "over 99" if abs(self.errors) > 99 else f"{abs(self.errors):.1f}"
        return f"{self.mean:+.2g}, {size} standard error{'' if size == '1.0' else 's'}"


class Ranked(Struct, frozen=True, kw_only=True):
    """One measured checkpoint."""

    step: int
    loss: float
    verdict: Verdict  # worse: higher than the best by more than chance; alike: not told apart from it
    behind: Difference  # against the best


class Ranking(Struct, frozen=True, kw_only=True):
    """The measured checkpoints, the best first."""

    ranked: list[Ranked]
    overfits_after: int | None = None  # the best step, where all that come later are worse by more than chance
    since_first: Difference | None = None  # of the best, against the run's first measurement; None where it is that
    by_expert: dict[str, int] = field(default_factory=dict)  # the best step for each expert alone
    clips: int = 0
    reason: str = ""  # in a sentence, without a full stop
    by_previews: bool = False  # they have decided, and the reason begins with that; its loss may not be the lowest

    @property
    def best(self) -> int:
        return self.ranked[0].step

    @property
    def text(self) -> str:
        """`best: step 1500; later ones overfit (...)`"""
        return f"best: step {self.best}{f'; {self.reason}' if self.reason else ''}"

    def of(self, step: int) -> Ranked | None:
        return next((r for r in self.ranked if r.step == step), None)


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.inf


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of independent values; None of fewer than two."""
    if len(values) < 2:
        return None
    middle = mean(values)
    return math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (len(values) - 1) / len(values))


def critical(clips: int) -> float:
    """How many standard errors chance seldom reaches, with so many clips."""
    free = max(1, clips - 1)
    return CRITICAL[free - 1] if free <= len(CRITICAL) else 1.96 + 2.5 / free


def differences(losses: Sequence[float], others: Sequence[float]) -> Difference:
    """Of two measurements of the same clips, clip by clip."""
    apart = [a - b for a, b in zip(losses, others, strict=True)]
    return Difference(mean=mean(apart), error=standard_error(apart), clips=len(apart))


def paired(one: Measure, other: Measure) -> Difference:
    """How much higher the loss is in one than in the other. Each clip counts once, with the mean over noise levels and
    experts: its levels have the clip in common, so they are no independent witnesses."""
    return differences(one.by_clip, other.by_clip)


def comparable(measured: Sequence[Measure]) -> list[Measure]:
    """Those that can be paired with the newest one, and are finite, by step."""
    newest = measured[-1] if measured else None
    alike = [
        m for m in measured if m.finite and newest and (m.of, m.losses.keys()) == (newest.of, newest.losses.keys())
    ]
    return sorted(alike, key=lambda m: m.step)


def rank(
    measured: Sequence[Measure],
    *,
    saved: Collection[int] | None = None,
    previews: Mapping[int, float] | None = None,
) -> Ranking | None:
    """The checkpoints, best first; None when none was measured: then nothing is claimed.

    `saved`: the steps whose LoRA files are to be chosen from (all measured ones, when left out; what was before the
    first step is no checkpoint). `previews`: how good the previews of a step are, by whoever has judged them, higher is
    better: among the checkpoints that held-out loss does not tell apart from its best, they decide.
    """
    there = comparable(measured)
    among = [m for m in there if m.step > 0 and (saved is None or m.step in saved)]
    if not among:
        return None
    by_loss = best = min(among, key=lambda m: (m.loss, m.step))
    judged = {}
    if previews and by_loss.step in previews:  # else nobody knows that others are better
        judged = {m.step: previews[m.step] for m in among if m.step in previews and not paired(m, by_loss).higher}
        best = min((m for m in among if m.step in judged), key=lambda m: (-judged[m.step], m.loss, m.step))

    def ranked(m: Measure) -> Ranked:
        behind = paired(m, best)
        verdict: Verdict = "best" if m is best else "worse" if behind.higher else "alike"
        return Ranked(step=m.step, loss=m.loss, verdict=verdict, behind=behind)

    others = sorted((ranked(m) for m in among if m is not best), key=lambda r: (r.verdict == "worse", r.loss, r.step))
    later = sorted((r for r in others if r.step > best.step), key=lambda r: r.step)
    first = there[0]
    return Ranking(
        ranked=[ranked(best), *others],
        overfits_after=best.step if later and all(r.verdict == "worse" for r in later) else None,
        since_first=None if first is best else paired(best, first),
        by_expert={expert: min(among, key=lambda m: (mean(m.losses[expert]), m.step)).step for expert in best.losses},
        clips=len(best.by_clip),
        reason=_reason(best, later, first, chosen_by_previews=len(judged) > 1),
        by_previews=len(judged) > 1,
    )


def _reason(best: Measure, later: list[Ranked], first: Measure, *, chosen_by_previews: bool) -> str:
    said = []
    if chosen_by_previews:
        said.append("by its previews, among those that held-out loss does not tell apart")
    if later:
        last = later[-1]
        at = f"(step {last.step}: {last.behind.text})"
        worse = [r.verdict == "worse" for r in later]
        if all(worse):
            said.append(f"later ones overfit {at}")
        elif worse[-1]:
            since = next(i for i in range(len(worse)) if all(worse[i:]))
            said.append(f"from step {later[since].step} on they overfit {at}")
        else:
            said.append(f"later ones are not told apart from it {at}")
    if first is not best:
        gain = paired(best, first)
        begin = "before training" if first.step == 0 else f"step {first.step}"
        if gain.lower:
            said.append(f"against {begin}: {gain.text}")
        elif gain.higher:
            said.append(f"yet worse than {begin} ({gain.text})")
        elif gain.errors is not None:
            said.append(f"not told apart from {begin} ({gain.text})")
    return "; ".join(said)


def no_better_since(measured: Sequence[Measure], patience: int) -> int | None:
    """The step since which `patience` measurements or more have brought nothing better; None while there is hope.

    Better is what is lower by more than its standard error (of one clip: lower at all). What is compared with stays
    until then, so that many small gains add up to one.
    """
    there = comparable(measured)
    if not there:
        return None
    best, waited = there[0], 0
    for m in there[1:]:
        gain = paired(m, best)
        if -gain.mean > (gain.error or 0.0):
            best, waited = m, 0
        else:
            waited += 1
    return best.step if waited >= patience else None


def bounded(measured: list[Measure], saved: set[int]) -> list[Measure]:
    """Of very many measurements every second of the older ones goes, but for the first and the best: those of the
    checkpoints after steps `saved`, which alone can be the best, only when all others are gone."""
    for kept in (saved, set[int]()):
        if len(measured) > MOST_MEASURED:
            best = min([m for m in measured if m.step in kept] or measured, key=lambda m: m.loss)
            older = [m for m in measured[: len(measured) // 2] if m.step not in kept]
            gone = {id(m) for m in older[1::2] if m is not best}
            measured = [m for m in measured if id(m) not in gone]
    return measured

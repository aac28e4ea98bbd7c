"""What happened along a run, as marks at its steps: one sign each, and a few words."""

import math
from typing import TYPE_CHECKING, NamedTuple

from presets.runs.checkpoints import StoredCheckpoint
from presets.runs.run_view import Change, RunView
from wanlora_tui.output.formatting import rate

if TYPE_CHECKING:
    from wanlora_tui.plot.series import Series

# kind -> its sign, in the log the same where there is one; of several in one place the first in this table is drawn
SIGNS = {
    "not finite": "!",
    "went back": "↶",
    "lr lowered": "↓",
    "lr raised": "↑",
    "changed": "~",
    "resumed": "►",
    "best": "✓",
    "preview": "▣",
    "checkpoint": "◆",
}
RANK = {kind: i for i, kind in enumerate(SIGNS)}
UPRIGHT = frozenset(
    {"went back", "lr lowered", "lr raised", "changed", "resumed"}
)  # what a line through the plot shows


class Mark(NamedTuple):
    step: int
    kind: str
    text: str
    why: str = ""  # may be long


class Best(NamedTuple):
    """The best checkpoint, as the run's machine ranks them: there its previews may have been measured."""

    step: int
    reason: str  # "" where it is not known


def best_of(found: list[StoredCheckpoint]) -> Best | None:
    """None where nothing is claimed."""
    ranked = [c for c in found if c.verdict]
    return Best(ranked[0].against, next((c.why for c in ranked if c.verdict == "best"), "")) if ranked else None


def marks_of(view: RunView, series: "list[Series]", best: Best | None = None) -> list[Mark]:
    """In the order of the steps. `best` None: the best held-out loss counts."""
    left = {b.after: b for b in view.abandoned if b.after in view.resumed}
    found = [Mark(c.step, "checkpoint", "checkpoint") for c in view.checkpoints]
    found += [Mark(step, "preview", "preview") for step in sorted({s.step for s in view.samples})]
    found += map(_changed, view.changes)
    for step in view.resumed:
        branch = left.get(step)
        if branch is not None and branch.folder:
            found.append(Mark(step, "went back", f"went back to here from step {branch.last}"))
        else:
            anew = f", trained anew from here to {branch.last}" if branch is not None else ""
            found.append(Mark(step, "resumed", f"resumed{anew}"))
    if (ranking := view.ranking) is not None:
        step, reason = best or (ranking.best, ranking.reason)
        what = "best checkpoint" if step != ranking.best else "best held-out loss"
        found.append(Mark(step, "best", what, reason))
    for finding in view.findings:
        if finding.get("code") == "non-finite" and isinstance(skipped := finding.get("step"), int):
            found.append(Mark(skipped, "not finite", f"step {skipped} not finite, skipped"))
    for one in series:
        if one.counts[-1] < len(one.values):
            found += [
                Mark(step, "not finite", f"step {step}: {one.panel} {value}")
                for step, value in zip(one.steps, one.values, strict=True)
                if not math.isfinite(value)
            ]
    return sorted(found, key=lambda mark: (mark.step, RANK[mark.kind]))


def _changed(change: Change) -> Mark:
    name = change.field.removeprefix("training.")
    try:
        old, new = float(change.old), float(change.new)
    except ValueError:
        return Mark(change.step, "changed", f"{name} {change.old} → {change.new}")
    if not name.endswith("lr"):
        return Mark(change.step, "changed", f"{name} {change.old} → {change.new}")
    kind = "lr lowered" if new < old else "lr raised"
    return Mark(change.step, kind, f"{name} {rate(old)} → {rate(new)}")

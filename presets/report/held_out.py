"""Held-out loss as the page shows it: a curve for each expert, and which checkpoint is best, with the reason. How it is
ranked is presets.runs.ranking's.
"""

import math

from presets.job.expert_schedule import EXPERTS
from presets.report.best import Choice
from presets.report.chart import Place, chart
from presets.report.markup import Markup, element, table
from presets.runs.ranking import Ranking, comparable, mean, standard_error
from presets.runs.run_view import RunView

MOST_RANKED = 12
VERDICTS = {"best": "the best", "alike": "not told apart from it", "worse": "worse"}


def held_out(view: RunView, ranking: Ranking | None, best: Choice | None, names: dict[str, str]) -> list[Markup]:
    """Nothing where none was measured."""
    measured = comparable(view.measured)
    parts: list[Markup] = []
    for expert in EXPERTS:
        points = []
        for m in measured:
            if losses := m.losses.get(expert):
                middle, error = mean(losses), standard_error(losses) or 0.0
                points.append(Place(m.step, middle, middle - error, middle + error))
        if points and all(math.isfinite(p.mean) for p in points):
            title = f"Held-out loss of the {names[expert].lower()} expert"
            marked = best.step if best is not None and best.ranked else None
            parts += [
                element("h3", f"{names[expert]}: {points[0].mean:.4g} to {points[-1].mean:.4g}"),
                chart(title, expert, points, until=view.step, marked=marked, dots=True),
            ]
    if parts:
        about = (
            "The same clips, which were not trained on, at the same noise each time. The range is the standard error of"
            " the mean over the clips; checkpoints are compared clip by clip, which is finer."
        )
        parts.append(element("p", about, class_="faint"))
    if ranking is not None:
        rows: list[tuple[str, ...]] = [("Checkpoint", "Held-out loss", "Against the best", "Verdict")]
        rows += [
            (
                f"step {r.step:,}",
                f"{r.loss:.4g}",
                "" if r.verdict == "best" else r.behind.text,
                VERDICTS[r.verdict],
            )
            for r in ranking.ranked[:MOST_RANKED]
        ]
        parts.append(table(rows))
    return parts

"""Which panels there are, what each shows and how many rows it has."""

from dataclasses import dataclass

from wanlora_tui.output.formatting import expert_text
from wanlora_tui.plot.series import HELD_OUT, LOSS, LR, PlottedRun, Series

TALL = 20  # rows from which on each expert has a panel of its own
ROOMY = 12  # from which on what is not the loss has one
LEAST = 2  # of a panel
TALLEST = 8  # of the held-out losses, which have few points
Member = tuple[int, int, Series]  # the numbers of the run and of the name within it, and the series


@dataclass
class Group:
    """The series that share a scale."""

    panel: str
    title: str  # "" when there is one panel alone
    series: list[Member]
    rows: int = 0

    @property
    def log(self) -> bool:
        """Whether a log scale, if wanted, is for this: a rate begins at nothing."""
        return self.panel != LR


def groups_of(runs: list[PlottedRun], apart: bool | None, rows: int) -> list[Group]:
    """Losses first, then held-out losses. Together they have `rows`, at least one each; panels without room are left
    out."""
    names: dict[str, int] = {}
    panels: dict[str, list[Member]] = {}
    for number, run in enumerate(runs):
        for series in run.series:
            if series.steps:
                side = names.setdefault(series.name, len(names))
                panels.setdefault(series.panel, []).append((number, side, series))
    tall = apart if apart is not None else rows >= TALL
    groups: list[Group] = []
    for panel in sorted(panels, key=lambda p: (p != LOSS, p != HELD_OUT)):
        members = panels[panel]
        if panel not in (LOSS, HELD_OUT) and rows < ROOMY and not apart:
            continue
        if panel == LOSS and tall:
            groups += [Group(panel, f"{panel} {expert_text(n)}", [m for m in members if m[2].name == n]) for n in names]
        else:
            groups.append(Group(panel, panel, members))
    groups = [g for g in groups if g.series]
    while len(groups) > 1 and len(groups) * (LEAST + 1) > rows:
        if groups[-1].panel == LOSS:  # no room for one each
            return [Group(LOSS, "", panels[LOSS], max(1, rows))]
        groups.pop()
    _share(groups, rows)
    return groups


def _share(groups: list[Group], rows: int) -> None:
    if len(groups) == 1:
        groups[0].title, groups[0].rows = "", max(1, rows)
        return
    rest = rows - len(groups)
    losses = [g for g in groups if g.panel == LOSS]
    others = [g for g in groups if g.panel != LOSS]
    for group in others:
        most = TALLEST if group.panel == HELD_OUT else 4
        group.rows = (
            max(LEAST, min(most, rest // (3 if group.panel == HELD_OUT else 6))) if losses else rest // len(others)
        )
        rest -= group.rows if losses else 0
    for i, group in enumerate(losses):
        group.rows = rest // len(losses) + (i < rest % len(losses))

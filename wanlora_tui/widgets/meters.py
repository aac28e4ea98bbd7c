"""Bars of memory, and the numbers of the last step."""

from collections.abc import Sequence

from textual.content import Content

from presets.runs.run_view import RunView
from presets.text import loss_text
from wanlora_tui.feeds.run_times import RunTimes
from wanlora_tui.output.formatting import expert_text, rate, seconds_each
from wanlora_tui.terminal.rows import Rows

FULL, EMPTY = "█", "░"
SPARKS = "▁▂▃▄▅▆▇█"
FLAT = 0.25  # of the highest: the least that a sparkline's whole height stands for
SHORT = 34  # columns below which a bar's label is its first word
LEAST_BAR = 4  # columns: where there are fewer, none is drawn
TIGHT = 0.95  # of the memory: the bar changes its colour

Cell = tuple[str, str]  # a label and a value


def bar(done: float, total: float, width: int, colour: str = "$primary") -> Content:
    """A bar of `width` cells; nothing is drawn full before it is."""
    filled = min(width, int(width * done / total)) if total > 0 else 0
    return Content.assemble((FULL * filled, colour), (EMPTY * (width - filled), "$text-muted"))


class MemoryBar(Rows):
    """`VRAM ████░░░░ 18.2/24.0 GiB`: how much is taken, of how much."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._last: tuple[str, float, float] | None = None

    def on_resize(self) -> None:
        if self._last is not None:
            self.show(*self._last)

    def show(self, label: str, used_gib: float, total_gib: float) -> None:
        self._last = label, used_gib, total_gib
        used = "-" if not used_gib else "<0.1" if used_gib < 0.05 else f"{used_gib:.1f}"
        numbers = f"{used}/{total_gib:.0f} GiB" if total_gib else f"{used} GiB" if used_gib else "-"
        if self.size.width < SHORT:
            label = label.partition(" ")[0]
        width = self.size.width - len(label) - len(numbers) - 2
        tight = total_gib > 0 and used_gib / total_gib > TIGHT
        if width < LEAST_BAR:  # the numbers say the same, and more
            said = Content.assemble(f"{label} ", (numbers, "$warning" if tight else ""))
        else:
            middle = bar(used_gib, total_gib, width, "$warning" if tight else "$primary") if total_gib else " " * width
            said = Content.assemble(f"{label} ", middle, f" {numbers}")
        self.put([said])


def sparkline(values: list[float], width: int) -> str:
    """The last `width` of them, one cell each. What differs by a few percent lies flat."""
    shown = values[-width:] if width > 0 else []
    if len(shown) < 2:
        return ""
    low, high = min(shown), max(shown)
    span = max(high - low, FLAT * high)
    return "".join(
        SPARKS[min(len(SPARKS) - 1, int(len(SPARKS) * (v - low) / span))] if span else SPARKS[0] for v in shown
    )


class Numbers(Rows):
    """Step, time and optimizer figures: three rows in a narrow place, two columns in a tall one."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._last: tuple[RunView, RunTimes, int] | None = None
        self._cells: list[tuple[Cell, ...]] = []  # of each row
        self._places = 0, 0  # columns of text, and of cells

    def on_resize(self) -> None:
        # behind the layout under way: within it Textual keeps the height of the rows of before
        self.call_after_refresh(self._show_again)

    def _show_again(self) -> None:
        if self._last is not None:
            self.show(*self._last)

    def show(self, view: RunView, times: RunTimes, steps: int) -> None:
        """`steps`: of the job, which the run has not told before it starts."""
        self._last = view, times, steps
        last = {e: p[-1].loss for e, p in view.losses.items() if p}
        stepped = view.last_step_at > 0  # the number of the last step may come before its events, from the job's record
        across = 4 if self.size.width >= 72 else 2
        each = seconds_each(view.seconds_per_step) if view.seconds_per_step else "-"
        spark = sparkline(view.recent, self.size.width // across - len(f"s/step {each}") - 2)
        cells = [
            ("step", f"{view.step}/{view.steps or steps}"),
            ("took", times.worked or "-") if times.over else ("ETA", times.left or "-"),
            ("ended" if times.over else "ends", times.ends or "-"),
            *([] if times.over else [("worked", times.worked or "-")]),
            ("s/step", f"{each} {spark}".rstrip()),
            *([] if times.over else [("expert", expert_text(view.expert) or "-")]),
            ("high loss", loss_text(last["high_noise"]) if "high_noise" in last else "-"),
            ("low loss", loss_text(last["low_noise"]) if "low_noise" in last else "-"),
            ("lr", rate(view.lr) if stepped else "-"),
            ("grad norm", f"{view.grad_norm:.3f}" if stepped else "-"),
        ]
        if times.cost:
            cells.append(("cost", times.cost))
        if across == 2:
            cells += [(part, f"{s:.3f} s") for part, s in view.seconds.items() if part != "total"]
        self._put_cells([tuple(cells[at : at + across]) for at in range(0, len(cells), across)], across)

    def _put_cells(self, cells: list[tuple[Cell, ...]], across: int) -> None:
        """Rows that read as before are not made anew."""
        before, self._cells = self._cells, cells
        old, self._places = self._places, (self.size.width, across)
        kept = len(before) if old == self._places else 0
        self.put(
            [
                self.rows[y] if y < kept and row == before[y] else in_columns(row, *self._places)
                for y, row in enumerate(cells)
            ]
        )


def in_columns(cells: Sequence[Cell], width: int, across: int) -> Content:
    """Labels and values in so many columns, a blank between two of them. A row with fewer leaves the rest to its last
    one; a longer one begins before its column, or pushes those behind it on. What still has no room ends in `…`."""

    def column(n: int) -> int:
        return n * (width // across) + min(n, width % across)

    said = [Content.assemble((f"{label} ", "dim"), (value, "bold")) for label, value in cells]
    starts = [0]
    for n in range(1, len(said)):
        latest = width - sum(behind.cell_length + 1 for behind in said[n:]) + 1
        starts.append(max(starts[-1] + said[n - 1].cell_length + 1, min(column(n), latest)))
    ends = [start - 1 for start in starts[1:]] + [max(column(len(said)) - 1, starts[-1] + said[-1].cell_length)]
    parts = [
        part.truncate(min(end, width) - start, ellipsis=True, pad=n < across - 1)
        for n, (part, start, end) in enumerate(zip(said, starts, ends, strict=True))
        if start < width
    ]
    return Content(" ").join(parts)

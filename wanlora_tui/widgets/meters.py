"""Bars of memory, and the numbers of the last step."""

from rich.table import Table
from rich.text import Text
from textual.content import Content
from textual.widgets import Static

from presets.runs.run_view import RunView
from wanlora_tui.output.formatting import duration, expert_text, rate, seconds_each

FULL, EMPTY = "█", "░"
TIGHT = 0.95  # of the memory: the bar changes its colour


def bar(done: float, total: float, width: int, colour: str = "$primary") -> Content:
    """A bar of `width` cells; nothing is drawn full before it is."""
    filled = min(width, int(width * done / total)) if total > 0 else 0
    return Content.assemble((FULL * filled, colour), (EMPTY * (width - filled), "$text-muted"))


class MemoryBar(Static):
    """`VRAM ████░░░░ 18.2/24.0 GiB`: how much is taken, of how much."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._last: tuple[str, float, float] | None = None

    def on_resize(self) -> None:
        if self._last is not None:
            self.show(*self._last)

    def show(self, label: str, used_gib: float, total_gib: float) -> None:
        self._last = label, used_gib, total_gib
        numbers = f"{used_gib:.1f}/{total_gib:.0f} GiB" if total_gib else f"{used_gib:.1f} GiB" if used_gib else "-"
        width = max(4, self.size.width - len(label) - len(numbers) - 2)
        tight = total_gib > 0 and used_gib / total_gib > TIGHT
        middle = bar(used_gib, total_gib, width, "$warning" if tight else "$primary") if total_gib else " " * width
        self.update(Content.assemble(f"{label} ", middle, f" {numbers}"))


class Numbers(Static):
    """Step, time and optimizer figures: two rows in a narrow place, two columns in a tall one."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._last: tuple[RunView, bool] | None = None

    def on_resize(self) -> None:
        if self._last is not None:
            self.show(self._last[0], running=self._last[1])

    def show(self, view: RunView, *, running: bool) -> None:
        """`running`: as the daemon has it. A trainer that was killed has said nothing about its end."""
        self._last = view, running
        last = {e: p[-1].loss for e, p in view.losses.items() if p}
        cells = [
            ("step", f"{view.step}/{view.steps}"),
            (
                "ETA",
                duration(view.eta_seconds) if running and view.state == "running" and view.seconds_per_step else "-",
            ),
            ("s/step", seconds_each(view.seconds_per_step) if view.seconds_per_step else "-"),
            ("expert", expert_text(view.expert) or "-"),
            ("high loss", f"{last['high_noise']:.4f}" if "high_noise" in last else "-"),
            ("low loss", f"{last['low_noise']:.4f}" if "low_noise" in last else "-"),
            ("lr", rate(view.lr) if view.step else "-"),
            ("grad norm", f"{view.grad_norm:.3f}" if view.step else "-"),
        ]
        across = 4 if self.size.width >= 72 else 2
        table = Table.grid(padding=(0, 1), expand=True)
        for _ in range(across):
            table.add_column(no_wrap=True, ratio=1)
        pairs = [
            Text.assemble((f"{label} ", "dim"), (value, "bold"), overflow="ellipsis", no_wrap=True)
            for label, value in cells
        ]
        if across == 2:
            pairs += [
                Text.assemble((f"{part} ", "dim"), (f"{s:.3f} s", "bold"))
                for part, s in view.seconds.items()
                if part != "total"
            ]
            pairs += [Text()] * (len(pairs) % 2)
        for i in range(0, len(pairs), across):
            table.add_row(*pairs[i : i + across])
        self.update(table)

"""One prompt across the checkpoints, and one checkpoint across the prompts: previews to judge a run by.

The pictures form a grid. Its rows are the prompts, and last all of them; its columns are all steps together, and then
each step. Left and right keep the prompt, so that flipping between two steps shows what changed; up and down keep the
step.

They are made by the trainer; the newest alone is shown by wanlora_tui.widgets.poster.
"""

from pathlib import Path

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Container
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer, Static

from wanlora_tui.actions import bindings
from wanlora_tui.feeds.run_feed import ShownRun
from wanlora_tui.widgets.poster import read_picture

ALL_STEPS = -1
SECONDS = 2.0  # between two looks for new pictures


def copy_path(screen: Screen[None], path: Path, *, title: str) -> None:
    """Send a path to the terminal's clipboard, and show it for terminals that have none."""
    screen.app.copy_to_clipboard(str(path))
    words = (
        "Sent to the terminal's clipboard (OSC 52). If your terminal or tmux does not pass it on, copy it from here."
    )
    screen.notify(f"{path}\n{words}", title=title, timeout=10)


class CompareScreen(Screen[None]):
    """Draws what lies in the run folder; always says the path, for terminals that draw no pictures."""

    HELP_GROUP = "compare"
    BINDINGS = bindings("compare.left", "compare.right", "compare.up", "compare.down", "compare.copy", "compare.close")

    def __init__(self, run: ShownRun, run_dir: Path, image: type[Widget], *, host: str = "") -> None:
        super().__init__()
        self._run, self._run_dir, self._image, self._host = run, run_dir, image, host
        self._at = (0, ALL_STEPS)  # prompt and step; the prompt behind the last one stands for all
        self._shown: tuple[Path, int] | None = None

    def compose(self) -> ComposeResult:
        yield Static(id="compare-title")
        yield Container(self._image(id="compare-image"), id="compare-frame")
        yield Static(id="compare-text")
        yield Footer()

    def on_mount(self) -> None:
        if not self.pictures.get(self._at):
            self._at = (0, self.steps[-1])
        self.set_interval(SECONDS, self._draw)
        self._draw()

    @property
    def steps(self) -> list[int]:
        return sorted({s.step for s in self._run.view.samples})

    @property
    def prompts(self) -> list[str]:
        """As the newest previews have them, by their place in the job; "" where no preview could be made yet."""
        found = {
            int(Path(s.path).stem): s.prompt
            for s in sorted(self._run.view.samples, key=lambda s: s.step)
            if Path(s.path).stem.isdigit()
        }
        return [found.get(i, "") for i in range(max(found, default=-1) + 1)]

    @property
    def pictures(self) -> dict[tuple[int, int], Path]:
        """(prompt, step) -> picture, of those that the trainer has made."""
        found = {
            (int(Path(s.poster).stem), s.step): self._run_dir / s.poster
            for s in self._run.view.samples
            if Path(s.poster).stem.isdigit()
        }
        count = len(self.prompts)
        for i in {i for i, _ in found}:
            found[i, ALL_STEPS] = self._run_dir / f"samples/compare_{i:02d}.png"
        for s in self._run.view.samples:
            found[count, s.step] = self._run_dir / Path(s.poster).parent / "sheet.png"
        return found if self._host else {at: path for at, path in found.items() if path.exists()}

    def _draw(self) -> None:
        pictures = self.pictures
        path = pictures.get(self._at)
        if path is None:  # rolled back, or the folder was tidied up
            self._at = next(iter(pictures), (0, ALL_STEPS))
            path = pictures.get(self._at, self._run_dir)
        prompt, step = self._at
        name = f"prompt {prompt + 1} of {len(self.prompts)}" if prompt < len(self.prompts) else "all prompts"
        at = "all steps" if step == ALL_STEPS else f"step {step}"
        row = [s for p, s in sorted(pictures) if p == prompt]
        axis = "  ".join(
            f"[{mark}]" if s == step else mark
            for s in self._near(row, step)
            for mark in ["all" if s == ALL_STEPS else str(s)]
        )
        self.query_one("#compare-title", Static).update(
            Text.assemble((f"{name}, {at}", "bold"), f"   ◀ {axis} ▶", no_wrap=True, overflow="ellipsis")
        )
        stamp = (path, path.stat().st_mtime_ns if path.is_file() else 0)
        if stamp == self._shown:
            return
        self._shown = stamp
        picture, note = read_picture(path, self._host)
        image = self.query_one("#compare-image")
        image.image = picture  # type: ignore[attr-defined]  # every class of textual_image.widget has it
        image.display = picture is not None
        words = self.prompts[prompt] if prompt < len(self.prompts) else ""
        self.query_one("#compare-text", Static).update(
            Text.assemble((f"{words}\n" if words else "", "italic"), note, overflow="fold")
        )

    @staticmethod
    def _near(row: list[int], step: int, most: int = 9) -> list[int]:
        """As many of a row's steps as a title has room for, the present one among them."""
        at = row.index(step) if step in row else 0
        first = max(0, min(at - most // 2, len(row) - most))
        return row[first : first + most]

    def action_step(self, by: int) -> None:
        row = [s for p, s in sorted(self.pictures) if p == self._at[0]]
        if self._at[1] in row:
            self._at = (self._at[0], row[max(0, min(len(row) - 1, row.index(self._at[1]) + by))])
        self._draw()

    def action_prompt(self, by: int) -> None:
        pictures = self.pictures
        rows = sorted({p for p, _ in pictures})
        if self._at[0] in rows:
            prompt = rows[max(0, min(len(rows) - 1, rows.index(self._at[0]) + by))]
            steps = [s for p, s in sorted(pictures) if p == prompt]
            self._at = (prompt, self._at[1] if self._at[1] in steps else steps[-1])
        self._draw()

    def action_copy_path(self) -> None:
        copy_path(self, self._shown[0] if self._shown else self._run_dir, title="Picture")

    def action_close(self) -> None:
        self.dismiss()

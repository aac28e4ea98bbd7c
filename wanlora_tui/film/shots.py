"""The previews of a run as a table: a row for each prompt, a column for each step, those of branches that were left
among them."""

from dataclasses import dataclass, field
from pathlib import Path

from presets.runs.run_view import PreviewSet, RunView


@dataclass(frozen=True, order=True)
class Column:
    """The previews after one step. `left`: the attempt whose branch a rollback left, 0 for what the run is now."""

    step: int
    left: int = 0
    after: int = field(default=0, compare=False)  # the step that was gone back to

    @property
    def label(self) -> str:
        return f"step {self.step}" + (f" ~{self.left} abandoned" if self.left else "")

    @property
    def short(self) -> str:
        """With `~1` for what attempt 1 left."""
        return f"{self.step}" + (f"~{self.left}" if self.left else "")


@dataclass(frozen=True)
class Shot:
    """One preview."""

    column: Column
    prompt: str
    seed: int
    film: Path
    poster: Path


class Shots:
    """What a run's events say about previews; their files may be gone."""

    def __init__(self, view: RunView, run_dir: Path) -> None:
        self.table: dict[tuple[int, Column], Shot] = {}
        for left in view.abandoned:
            # after a plain resume they are made anew where they lie: what they were is kept nowhere
            for sample in left.samples if left.folder else ():
                self._add(sample, run_dir / left.folder, Column(sample.step, left.attempt, left.after))
        for sample in view.samples:
            self._add(sample, run_dir, Column(sample.step))
        self.columns = sorted({column for _, column in self.table})
        self.prompts = 1 + max((prompt for prompt, _ in self.table), default=-1)

    def _add(self, sample: PreviewSet, folder: Path, column: Column) -> None:
        name = Path(sample.path).stem
        if name.isdigit():
            shot = Shot(column, sample.prompt, sample.seed, folder / sample.path, folder / sample.poster)
            self.table[int(name), column] = shot

    def get(self, prompt: int, column: Column) -> Shot | None:
        """None where no preview could be made, or none yet."""
        return self.table.get((prompt, column))

    def text(self, prompt: int) -> str:
        """A prompt as its newest preview has it; "" where there is none."""
        words = {column: shot.prompt for (i, column), shot in self.table.items() if i == prompt}
        return words[max(words, key=lambda column: (not column.left, column.step))] if words else ""

    @property
    def newest(self) -> tuple[int, Column] | None:
        """Where the run is: the last preview it has made."""
        kept = [at for at in self.table if not at[1].left]
        return max(kept, key=lambda at: (at[1].step, at[0]), default=None)

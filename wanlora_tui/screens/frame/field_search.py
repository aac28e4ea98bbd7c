"""The wizard's fields and actions in the palette: found by label, path or a word of their help."""

from collections.abc import Iterator
from functools import partial
from typing import Protocol, cast

from textual.command import Hits, Provider

from presets.job.fields import FIELDS, field_of
from wanlora_tui.actions.palette import EXACT, WORDS, discovered, found, hits
from wanlora_tui.draft.job_draft import PANELS, WizardState
from wanlora_tui.draft.steps import STEPS

# Panels that are lists of tables: how one makes a table, where a field of it leads while the job has none
MADE = {
    "datasets": "comes with a folder of clips: add one here",
    "model.merge": "comes with a LoRA to merge: name its file here",
    "sample.prompts": "comes with a prompt: ^F makes two of clips, ^L an empty one",
    "target.layers": "comes with a table for some layers: ^L makes one",
}


def made(field: str) -> str:
    """`model.merge.strength comes with a LoRA to merge: ...`: how one makes what a field in general is of; "" for a
    field that is there."""
    how = MADE.get(field.rpartition(".")[0], "")
    return f"{field} {how}" if how else ""


class _Wizard(Protocol):
    state: WizardState

    async def go_to(self, name: str, *, field: str = "") -> None: ...
    async def go_to_field(self, field: str) -> None: ...


class FieldSearch(Provider):
    """Every step and every field of a job; one whose table the job being made has not leads to where it is made."""

    @property
    def _wizard(self) -> _Wizard:
        return cast(_Wizard, self.screen)

    def _steps(self) -> Iterator[tuple[str, str, str]]:
        for number, step in enumerate(STEPS, 1):
            if self._wizard.state.furthest(step.name) == step.name:
                yield step.name, f"Step {number}: {step.title}", step.hint

    def _fields(self) -> Iterator[tuple[str, str, str]]:
        state = self._wizard.state
        there = [path for panel in (*PANELS, "sample.prompts") for path in state.fields(panel)]
        known = {field_of(path).path for path in there}
        for path in (*there, *(path for path in FIELDS if path not in known)):
            field = field_of(path)
            yield path, f"{field.label} · {path}", field.help

    async def discover(self) -> Hits:
        for name, text, help in self._steps():
            yield discovered(text, help, partial(self._wizard.go_to, name))

    async def search(self, query: str) -> Hits:
        matcher, word = self.matcher(query), query.lower()
        for name, text, help in self._steps():
            score = min(found(matcher, text, help), WORDS)  # a field of that name comes first
            for hit in hits(matcher, score, text, help, partial(self._wizard.go_to, name)):
                yield hit
        for path, text, help in self._fields():
            score = found(matcher, text, help)
            if path.rpartition(".")[2] == word:
                score = EXACT
            if score >= WORDS:
                score -= len(path) / 1000  # `rank`: the one of all before those of one expert
                score += text.lower().startswith(f"{word} ·")  # `steps`: before those of a preview
            for hit in hits(matcher, score, text, help, partial(self._wizard.go_to_field, path)):
                yield hit

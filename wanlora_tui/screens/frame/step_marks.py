"""What each step of the wizard has come to: in the list of steps, in the title, and between Back and Next."""

from typing import Any

from rich.cells import cell_len
from textual import events, on
from textual.screen import Screen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from presets.findings import Finding
from presets.text import escaped
from wanlora_tui.draft.job_draft import WizardState
from wanlora_tui.draft.steps import STEPS, position, step_of_field
from wanlora_tui.screens.frame.finding_text import counted, mark, marks_of_all
from wanlora_tui.widgets.redraw_throttle import Rest

REST = 0.25  # seconds without a key before the step and the marks follow what is typed
BUTTONS = (30, 24)  # columns that Back and Next take at least: on most terminals, on a narrow one


def complete(state: WizardState, step: str, here: str, findings: list[Finding] | None) -> str:
    """✓ for a step before the one in view that is filled in, of which nothing was found; "" for one that is not yet."""
    draft = state.draft
    filled_in = {
        "kind": draft.kind is not None,
        "clips": bool(draft.folders) and all(folder in state.scans for folder in draft.folders),
        "captions": findings is not None,
        "settings": findings is not None,
        "prompts": bool(draft.prompts),
        "review": False,  # it is the last one
    }
    return "✓" if filled_in[step] and position(step) < position(here) else ""


def title_line(place: int, marks: list[str], room: int, copy_of: str = "") -> str:
    """Where one is, what was found there, and what was found elsewhere: `... · Clips ✗2 · ✗1 in 4`. Where there is no
    room for all of it, what was found comes before what is made here, and whose copy it is before that it is a job."""
    found = [(i, text) for i, text in enumerate(marks) if text[:1] in ("✗", "!")]
    here = "".join(f" {text}" for i, text in found if i == place)
    others = ", ".join(f"{text} in {i + 1}" for i, text in found if i != place)
    title = f"step {place + 1} of {len(STEPS)} · {STEPS[place].title}{here}" + (f" · {others}" if others else "")
    if found and cell_len(title) > room:  # what is cut off is at the end
        seen = [f"{text} here" if i == place else f"{text} in {i + 1}" for i, text in found]
        title = f"{', '.join(seen)} · step {place + 1} of {len(STEPS)} · {STEPS[place].title}"
    made = [f"New LoRA job, a copy of {copy_of}", f"copy of {copy_of}"] if copy_of else ["New LoRA job"]
    return next((line for what in made if cell_len(line := f"{what} · {title}") <= room), title)


def findings_line(found: list[Finding], room: int) -> str:
    """How many findings a step has, and the key that shows them, in the most words for which there is room."""
    words, them = counted(found), "them" if len(found) > 1 else "it"
    lines = (f"{words} here: ^S shows {them}", f"{words} ^S", f"{marks_of_all(found)} ^S")
    return next((line for line in lines if cell_len(line) <= room), lines[-1])


class MarkingScreen(Screen[Any]):
    """A screen with a list `#steps`, a line `#wizard-title` and a `#nav-state` between two buttons."""

    state: WizardState
    findings: list[Finding] | None

    def __init__(self) -> None:
        super().__init__()
        self._listed: list[tuple[str, bool]] = []  # the steps as they are shown
        self._titled = self._stated = ""
        self.resting = Rest(self, self.rested, REST)

    @property
    def step(self) -> str:
        """The step in view."""
        return self.state.draft.step

    def on_resize(self) -> None:
        if self._listed:
            self.list_steps()

    def found_at(self, step: str) -> list[Finding]:
        """What was found so far about a step."""
        return self._found().get(step, [])

    def _found(self) -> dict[str, list[Finding]]:
        """By step: what is typed and no value, and what the rules say."""
        found: dict[str, list[Finding]] = {}
        for finding in [*self.state.findings(), *(self.findings or [])]:
            found.setdefault(step_of_field(finding.field), []).append(finding)
        return found

    def rested(self) -> None:
        """No key has come for a moment. A field says at once that what is typed is no value; what follows from it in
        step, list, title and footer would cost at each key more than all else that it does."""
        raise NotImplementedError

    def list_steps(self) -> None:
        """Each step with its mark, in the list and, for the one in view, in the title."""
        state, place, found = self.state, position(self.step), self._found()
        marks = [mark(found.get(s.name, ())) or complete(state, s.name, self.step, self.findings) for s in STEPS]
        steps = self.query_one("#steps", OptionList)
        shown = [
            (f"{marks[i] or ('▶' if i == place else ''):>3} {i + 1} {s.title}", state.furthest(s.name) != s.name)
            for i, s in enumerate(STEPS)
        ]
        if not self._listed:
            steps.add_options(Option(text, disabled=closed) for text, closed in shown)
        for i, ((text, closed), (text_before, closed_before)) in enumerate(zip(shown, self._listed, strict=False)):
            if text != text_before:
                steps.replace_option_prompt_at_index(i, text)
            if closed != closed_before:
                (steps.disable_option_at_index if closed else steps.enable_option_at_index)(i)
        self._listed = shown
        if steps.highlighted != place:
            steps.highlighted = place
        title = title_line(place, marks, self.size.width - 2, escaped(state.draft.copy_of))
        if self._titled != title:
            self._titled = title
            self.query_one("#wizard-title", Static).update(title, layout=False)
        self._show_found_here(found.get(self.step, []))

    def _show_found_here(self, found: list[Finding]) -> None:
        self.query_one("#nav-state").set_class(bool(found), "-found")
        cramped = self.has_class("-cramped")
        usual = "" if cramped else "the draft is kept as you type"
        self.state_words(findings_line(found, self.size.width - BUTTONS[cramped]) if found else usual)

    def state_words(self, text: str) -> None:
        """What stands between Back and Next."""
        if text != self._stated:
            self._stated = text
            self.query_one("#nav-state", Static).update(text, layout=self.has_class("-cramped"))

    @on(events.Click, "#nav-state")
    async def _found_clicked(self) -> None:
        if self.found_at(self.step):
            await self.run_action("findings")

"""Left-over drafts: what each was about, and which one to continue. They are kept by wanlora_tui.draft.draft_store."""

import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group
from rich.padding import Padding
from rich.text import Text
from textual import on, work
from textual.app import App, ComposeResult
from textual.containers import Vertical
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from presets.text import escaped, sentences
from wanlora_tui.actions import bindings
from wanlora_tui.draft.draft_store import Draft, DraftError, Drafts, DraftStore, age_text
from wanlora_tui.draft.steps import STEPS, position
from wanlora_tui.feeds.submitter import Submitter
from wanlora_tui.output.formatting import home_path, shorten, state_text
from wanlora_tui.screens.wizard.dialogs import Ask
from wanlora_tui.screens.wizard.pane import Choices
from wanlora_tui.widgets.fitting_footer import FittingFooter
from wanlora_tui.widgets.redraw_throttle import Dialog

LeftOver = tuple[DraftStore, Draft]


@dataclass
class Offered:
    """The draft to begin with, and its place; `store` None: one of its own, made at the first change."""

    draft: Draft
    store: DraftStore | None


async def offer(app: App[object], drafts: Drafts, submitter: Submitter | None) -> Offered | None:
    """Ask what to do with the drafts of wizards that have ended; None: leave the wizard. To be called from a worker.

    The draft that is taken is held from here on.
    """
    while True:
        found, problems = drafts.left_over()
        for problem in problems:
            app.notify(problem, title="A draft cannot be read", severity="error", timeout=20)
        if not found:
            return Offered(Draft(), None)
        answer, index = await (
            _ask_one(app, found[0], submitter) if len(found) == 1 else _ask_many(app, found, submitter)
        )
        if answer == "":
            return None
        if answer == "new":
            return Offered(Draft(), None)
        store = found[index][0]
        try:
            if not store.hold():
                app.notify("Another wizard has taken this draft meanwhile.", severity="warning")
            elif answer == "discard":
                store.delete()
            elif answer == "fresh":
                return Offered(Draft(), store)
            elif (now := store.load()) is not None:
                return Offered(now, store)
        except DraftError as e:
            app.notify(str(e), severity="error", timeout=20)
            return Offered(Draft(), None)


async def _ask_one(app: App[object], found: LeftOver, submitter: Submitter | None) -> tuple[str, int]:
    draft = found[1]
    place = position(draft.step)
    text = f"{about(draft)}, left at step {place + 1} of {len(STEPS)}: {STEPS[place].title}."
    launched = what_became(draft, submitter)
    answers = {"continue": "Continue", "fresh": "Start afresh", "new": "New job, keep this"}
    text = sentences(text, launched, "Starting afresh throws it away at your first choice")
    return (
        await app.push_screen_wait(
            Ask(f"Continue the half-filled job from {age_text(time.time() - draft.saved)}?", text, answers)
        ),
        0,
    )


async def _ask_many(app: App[object], found: list[LeftOver], submitter: Submitter | None) -> tuple[str, int]:
    return await app.push_screen_wait(DraftList(found, submitter))


def about(draft: Draft) -> str:
    """`A motion LoRA from orbit, wan_i2v_motion_orbit, a copy of wan_i2v_motion_orbit_v1`."""
    folders = f" from {shorten(', '.join(Path(f).name for f in draft.folders), 60)}" if draft.folders else ""
    return f"A {draft.kind or 'new'} LoRA{folders}" + (f", {draft.name}" if draft.name else "") + copied(draft)


def copied(draft: Draft) -> str:
    """`, a copy of orbit_v1`; "" of a draft that was made from nothing."""
    return f", a copy of {escaped(draft.copy_of)}" if draft.copy_of else ""


def what_became(draft: Draft, submitter: Submitter | None) -> str:
    """Of a draft whose wizard ended in the middle of its launch; "" for the others."""
    if not draft.launched:
        return ""
    job = submitter.taken(Path(draft.launched), draft.launched_at) if submitter is not None else None
    if job is not None:
        return f"It was launched already: job {job.id} {job.name}, {state_text(job.state)}"
    return "It was being launched when its wizard ended: see whether it is in the list of jobs"


class DraftList(Dialog[tuple[str, int]]):
    """Several drafts, newest first, and a new job. Dismisses with what to do ("" to leave) and which draft it is
    about."""

    BINDINGS = bindings("dialog.cancel", "drafts.discard", "app.help")
    DEFAULT_CSS = """
    DraftList { align: center middle; }
    DraftList > Vertical {
        width: 76; max-width: 98%; height: auto; max-height: 90%; border: round $primary; padding: 0 1;
        background: $surface;
    }
    DraftList Choices, DraftList Choices:focus {
        height: auto; max-height: 1fr; border: none; padding: 0; background: $surface;
    }
    DraftList Static { height: auto; color: $text-muted; }
    """

    def __init__(self, found: list[LeftOver], submitter: Submitter | None) -> None:
        super().__init__()
        self.found, self.submitter = found, submitter

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = f"{len(self.found)} half-filled jobs: which one?"
            yield Choices(
                *(self._entry(d) for _, d in self.found),
                Option(Text("A new job; all of these are kept", style="bold")),
                id="drafts",
                markup=False,
            )
            yield Static("Enter takes the highlighted one · x throws it away · Esc leaves")
        yield FittingFooter(compact=False)

    def _entry(self, draft: Draft) -> Option:
        place = position(draft.step)
        lines = [
            (
                f"{draft.kind or 'no kind yet'} ·"
                f" {shorten(', '.join(map(home_path, draft.folders)) or 'no folder yet', 52)}"
            ),
            f"{age_text(time.time() - draft.saved)}, at step {place + 1}: {STEPS[place].title}",
        ]
        if launched := what_became(draft, self.submitter):
            lines.append(launched)
        return Option(
            Group(
                Text(f"{draft.name or 'without a name yet'}{copied(draft)}", style="bold"),
                *(Padding(Text(line), (0, 0, 0, 2)) for line in lines),
            )
        )

    def on_mount(self) -> None:
        self.query_one(Choices).highlighted = 0

    @on(OptionList.OptionSelected)
    def _take(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(("continue", event.option_index) if event.option_index < len(self.found) else ("new", -1))

    @work
    async def action_discard(self) -> None:
        index = self.query_one(Choices).highlighted
        if index is None or index >= len(self.found):
            return
        answers = {"keep": "Keep it", "discard": "Throw it away"}
        if (
            await self.app.push_screen_wait(Ask("Throw this draft away?", f"{about(self.found[index][1])}.", answers))
            == "discard"
        ):
            self.dismiss(("discard", index))

    def action_cancel(self) -> None:
        self.dismiss(("", -1))

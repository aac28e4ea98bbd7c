"""Dialogs that mend captions: one clip with its pictures and its text, many captions before they are written, and while
they are taken back.

What is to be written is wanlora_tui.draft.clip_captions's; it is written by the step that asked.
"""

import asyncio
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.message import Message
from textual.widgets import Button, Input, Static, TextArea
from textual.worker import Worker

from presets.clips.captions import fill_trigger
from presets.errors import UserError
from presets.job.schema import DatasetPanel
from presets.text import escaped
from wanlora_tui.actions import bindings
from wanlora_tui.draft.caption_history import CaptionChange
from wanlora_tui.draft.clip_captions import one_line, problem_of
from wanlora_tui.draft.clip_list import ClipEntry
from wanlora_tui.output.formatting import count
from wanlora_tui.screens.frame.button_label import set_label
from wanlora_tui.screens.wizard.dialogs import close_over
from wanlora_tui.widgets.clip_frames import ClipFrames
from wanlora_tui.widgets.fitting_footer import FittingFooter
from wanlora_tui.widgets.pasting import OneLine, TextKeys
from wanlora_tui.widgets.redraw_throttle import Answers, Dialog

SHOWN = 200  # changes that a dialog lists; the rest is counted
SLICE = 0.008  # seconds of writing between two keys
OTHERS, WRONG = 8, 3  # rows of a dialog around its list of changes, and of what is wrong
BETWEEN = 0.1  # seconds between two words of how far it is


async def in_slices(
    steps: Generator[int, None, list[CaptionChange]], say: Callable[[int], object]
) -> list[CaptionChange]:
    """Write between two keys, and say now and then how many are written; what the steps come to. They are closed where
    that has no end: by an error, or when it is cancelled."""
    began, shown = time.monotonic(), 0.0
    try:
        while True:
            number = next(steps)
            if (now := time.monotonic()) - began > SLICE:
                if now - shown > BETWEEN:
                    shown = now
                    say(number)
                await asyncio.sleep(0)
                began = time.monotonic()
    except StopIteration as end:
        changes: list[CaptionChange] = end.value
        return changes
    finally:
        steps.close()


class _Text(TextKeys, TextArea):
    """A caption's text: Tab goes on to the buttons."""

    def __init__(self, text: str) -> None:
        super().__init__(text, id="caption-text", soft_wrap=True, tab_behavior="focus", compact=True)


class CaptionDialog(Dialog[str | None]):
    """One clip as training sees it, with its caption to write. Dismisses with the new text, or None.

    `write` is asked to write it, and says what is wrong; then the dialog stays, with all that was typed.
    """

    BINDINGS = bindings("dialog.cancel", "caption.write", "app.help")
    DEFAULT_CSS = """
    CaptionDialog { align: center middle; }
    CaptionDialog > VerticalScroll {
        width: 94%; max-width: 110; height: auto; max-height: 94%; border: round $primary; padding: 0 1;
        background: $surface;
    }
    CaptionDialog #caption-text { height: 5; border: none; background: $primary 15%; }
    CaptionDialog Static { height: auto; }
    CaptionDialog #caption-problem { color: $text-error; }
    CaptionDialog #caption-reads { color: $text-muted; }
    CaptionDialog ClipFrames .frames { height: 8; }
    CaptionDialog ClipFrames .seen { height: 3; }
    CaptionDialog Button { margin-right: 2; }
    CaptionDialog.-low ClipFrames .frames { height: 5; }
    CaptionDialog.-low ClipFrames .seen { height: 2; }
    CaptionDialog.-low #caption-text { height: 3; }
    CaptionDialog.-lower ClipFrames { display: none; }
    """

    def __init__(
        self,
        entry: ClipEntry,
        panel: DatasetPanel | None,
        trigger: str,
        text: str,
        *,
        file: str,
        note: str,
        write: Callable[[str], str],
    ) -> None:
        super().__init__()
        self.entry, self.panel, self.trigger = entry, panel, trigger
        self.text, self.file, self.note, self.write_text = text, file, note, write
        self._refused: str | None = None  # what could not be written, with the reason still shown

    def compose(self) -> ComposeResult:
        with VerticalScroll(can_focus=False) as box:
            box.border_title = escaped(self.entry.name).replace("[", "\\[")
            yield ClipFrames()
            yield Static(f"Caption, in {escaped(self.file)}", classes="row", markup=False)
            yield _Text(self.text)
            yield Static("", id="caption-reads", markup=False)
            yield Static(escaped(self.note), id="caption-problem", markup=False)
            with Answers():
                yield Button("Write it ^S", id="write", variant="primary", compact=True)
                yield Button("Cancel Esc", id="cancel", compact=True)
        yield FittingFooter(compact=False)

    def on_mount(self) -> None:
        self.query_one(ClipFrames).show(self.entry.clip, self.panel, note=self.entry.problem)
        text = self.query_one(_Text)
        text.move_cursor(text.document.end)
        text.focus()

    def on_resize(self) -> None:
        self.set_class(self.size.height < 30, "-low")
        self.set_class(self.size.height < 18, "-lower")

    @on(TextArea.Changed)
    def _typed(self) -> None:
        text = self.query_one(_Text).text
        line = one_line(text)
        reads = fill_trigger(line, self.trigger)
        said = []
        if "\n" in text.strip():
            said.append("Its lines become one")
        if reads != line or said:
            said.append(f"Reads: {reads}")
        self.query_one("#caption-reads", Static).update(escaped(". ".join(said)))
        if text not in (self.text, self._refused):
            self.query_one("#caption-problem", Static).update("")

    @on(Button.Pressed, "#write")
    def action_write(self) -> None:
        typed = self.query_one(_Text).text
        text = one_line(typed)
        problem = problem_of(text) or self.write_text(text)
        if problem:
            self._refused = typed
            said = self.query_one("#caption-problem", Static)
            said.update(f"✗ {escaped(problem)}")
            self.call_after_refresh(said.scroll_visible, animate=False)
        else:
            self.dismiss(text)

    @on(Button.Pressed, "#cancel")
    def action_cancel(self) -> None:
        self.dismiss(None)


class _Template(OneLine):
    joiner = " "


@dataclass
class Planned(Message):
    """The captions that a template makes."""

    template: str
    changes: list[CaptionChange]


class CaptionsDialog(Dialog[list[CaptionChange]]):
    """Many captions while they are made, before they are written, and while they are. Dismisses with them, or with none
    when it is cancelled, also half way: then all files are as they were.

    `plan` makes them in a thread, for there may be thousands; with a `template` (what the box holds at first) anew
    after each key. `none` is said when there is nothing to write. `write` writes them one by one, and says how many are
    written; what is wrong is shown, and it stays.
    """

    BINDINGS = bindings("dialog.cancel", "caption.write", "app.help")
    DEFAULT_CSS = """
    CaptionsDialog { align: center middle; }
    CaptionsDialog > VerticalScroll {
        width: 94%; max-width: 110; height: auto; max-height: 94%; border: round $primary; padding: 0 1;
        background: $surface;
    }
    CaptionsDialog Static { height: auto; }
    CaptionsDialog #made { height: auto; margin: 1 0; }
    CaptionsDialog #problem { color: $text-error; }
    CaptionsDialog Button { min-width: 0; margin-right: 1; }
    """

    def __init__(
        self,
        title: str,
        words: str,
        *,
        plan: Callable[[str], list[CaptionChange]],
        none: str,
        write: Callable[[list[CaptionChange]], Generator[int, None, list[CaptionChange]]],
        template: str | None = None,
    ) -> None:
        super().__init__()
        self.dialog_title, self.words, self.template = title, words, template
        self.plan, self.none, self.write_all = plan, none, write
        self.changes: list[CaptionChange] = []
        self._made_of: str | None = None  # the text that `changes` are made of, once they are
        self._planning = self._wanted = False  # `_wanted`: to be written once they are those of what was typed
        self._writing: Worker[None] | None = None

    def compose(self) -> ComposeResult:
        with VerticalScroll(can_focus=False) as box:
            box.border_title = self.dialog_title
            yield Static(self.words, markup=False)
            if self.template is not None:
                yield _Template(self.template, id="template", compact=True)
            with VerticalScroll(id="made"):
                yield Static("", id="changes", markup=False)
            yield Static("", id="problem", markup=False)
            with Answers():
                yield Button("", id="write", variant="primary", compact=True)
                yield Button("Cancel Esc", id="cancel", compact=True)
        yield FittingFooter(compact=False)

    def on_mount(self) -> None:
        self.query_one("#problem").display = False
        self._show()
        self._focus_first()
        self._plan_soon()

    def on_resize(self) -> None:
        self._fit()

    def _fit(self) -> None:
        """The buttons stay in view, and what is wrong."""
        others = OTHERS + (WRONG if self.query_one("#problem").display else 0)
        self.query_one("#made").styles.max_height = max(2, min(14, self.size.height * 9 // 10 - others))

    @property
    def takes_keys(self) -> bool:
        """No answer is taken before it is known to what."""
        return self.template is not None or self._made_of is not None

    def _focus_first(self) -> None:
        answer = "#template" if self.template is not None else "#write" if self.changes else "#cancel"
        self.set_focus(self.query_one(answer) if self.takes_keys else None)

    def _show(self) -> None:
        lines = [f"{change.name}: {change.after}" for change in self.changes[:SHOWN]]
        if len(self.changes) > SHOWN:
            lines.append(f"and {count(len(self.changes) - SHOWN, 'more')}".removesuffix("s"))
        if not lines:
            asked = self.template is None or bool(self._typed_text.strip())
            none = self.none if asked else "Nothing would be written."
            lines.append("… looking at the captions · Esc stops" if self._made_of is None else none)
        self.query_one("#changes", Static).update(escaped("\n".join(lines)))
        button = self.query_one("#write", Button)
        set_label(button, f"Write {count(len(self.changes), 'caption')} ^S")
        button.disabled = not self.changes

    @property
    def _typed_text(self) -> str:
        return self.query_one("#template", Input).value if self.template is not None else ""

    @on(Input.Changed, "#template")
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        self._plan_soon()

    def _plan_soon(self) -> None:
        """One at a time: what is typed meanwhile is planned after it."""
        if not self._planning and self._typed_text != self._made_of:
            self._planning = True
            self._plan(self._typed_text)

    @work(thread=True, group="plan", exit_on_error=False, description="plan")
    def _plan(self, template: str) -> None:
        self.post_message(Planned(template, self.plan(template)))

    @on(Planned)
    def _planned(self, event: Planned) -> None:
        event.stop()
        is_first = self._made_of is None
        self._planning, self._made_of, self.changes = False, event.template, event.changes
        if event.template != self._typed_text:
            self._plan_soon()
            return
        self._show()
        if is_first:
            self._focus_first()
        if self._wanted:
            self.action_write()

    @on(Input.Submitted, "#template")
    @on(Button.Pressed, "#write")
    def action_write(self) -> None:
        self._wanted = self._made_of != self._typed_text
        if not self._wanted and self.changes and self._writing is None:
            self._writing = self._write()

    @work(exit_on_error=False, group="write", description="write")
    async def _write(self) -> None:
        button, said = self.query_one("#write", Button), self.query_one("#problem", Static)
        for widget in (button, *self.query("#template")):
            widget.disabled = True
        number = len(self.changes)
        try:
            await in_slices(self.write_all(self.changes), lambda done: set_label(button, f"Writing {done} of {number}"))
        except UserError as e:
            self._writing = None
            said.display = True
            said.update(f"✗ {escaped(str(e))}")
            self._fit()
            for widget in self.query("#template"):
                widget.disabled = False
            self._show()
            self._focus_first()
            return
        await close_over(self)
        self.dismiss(self.changes)

    @on(Button.Pressed, "#cancel")
    def action_cancel(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
        self.dismiss([])


class TakingBack(Dialog[list[CaptionChange] | UserError | None]):
    """Captions while they are taken back. Dismisses with what was put back, or with what is wrong, or with None when it
    is stopped: then all are as they were written."""

    BINDINGS = bindings("dialog.cancel", "app.help")
    DEFAULT_CSS = """
    TakingBack { align: center middle; }
    TakingBack > Vertical {
        width: 60; max-width: 94%; height: auto; border: round $primary; padding: 0 1; background: $surface;
    }
    TakingBack Static { height: auto; margin-bottom: 1; }
    TakingBack Button { min-width: 0; }
    """

    def __init__(self, title: str, number: int, steps: Generator[int, None, list[CaptionChange]]) -> None:
        super().__init__()
        self.dialog_title, self.number, self.steps = title, number, steps
        self._working: Worker[None] | None = None

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = self.dialog_title
            yield Static(self._words(0), id="taken-back", markup=False)
            yield Button("Stop Esc", id="cancel", compact=True)
        yield FittingFooter(compact=False)

    def _words(self, done: int) -> str:
        return f"Taking back {done} of {count(self.number, 'caption')}. Stopped, all stay as they were written."

    def on_mount(self) -> None:
        self._working = self._work()

    @work(exit_on_error=False)
    async def _work(self) -> None:
        said = self.query_one("#taken-back", Static)
        try:
            done: list[CaptionChange] | UserError
            done = await in_slices(self.steps, lambda number: said.update(self._words(number)))
        except UserError as e:
            done = e
        await close_over(self)
        self.dismiss(done)

    @on(Button.Pressed, "#cancel")
    def action_cancel(self) -> None:
        if self._working is not None:
            self._working.cancel()
        self.dismiss(None)

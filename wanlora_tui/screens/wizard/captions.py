"""Step 3: the job's name, the trigger word, default captions, and how every caption will read.

How captions are read is presets.clips.captions's.
"""

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Button, Static

from wanlora_tui.actions import bindings
from wanlora_tui.draft.clip_list import ClipEntry, ClipLists
from wanlora_tui.draft.job_draft import WizardState
from wanlora_tui.output.formatting import count, home_path
from wanlora_tui.screens.wizard.mending import MendingPane
from wanlora_tui.screens.wizard.pane import look_text
from wanlora_tui.widgets.clip_table import CaptionTable
from wanlora_tui.widgets.field_input import FieldInput
from wanlora_tui.widgets.long_table import LongTable


class CaptionsPane(MendingPane):
    BINDINGS = bindings(
        "wizard.add_trigger", "wizard.fill_captions", "wizard.take_back", "wizard.leave_out", "wizard.read_again",
        "wizard.stop_looking",
    )  # fmt: skip
    DEFAULT_CSS = """
    CaptionsPane #caption-form { height: auto; max-height: 60%; }
    CaptionsPane .heading { text-style: bold; height: 1; margin-top: 1; }
    CaptionsPane #caption-count { height: auto; margin-top: 1; }
    """

    _counts = _said = ""

    def __init__(self, state: WizardState, lists: ClipLists) -> None:
        super().__init__(state, lists)
        self._entries: list[ClipEntry] = []  # of all folders, in order
        self._shown: list[list[ClipEntry]] = []  # by folder: what `_entries` is made of

    def compose(self) -> ComposeResult:
        self.made_of, folders = self.parts(), self.state.draft.folders
        with VerticalScroll(id="caption-form", can_focus=False):
            yield self.row("job.name")
            yield self.row("job.trigger")
            for i, folder in enumerate(folders):
                if len(folders) > 1:
                    yield Static(f"{i + 1} {home_path(folder)}", classes="heading", markup=False)
                yield self.row(f"datasets[{i}].default_caption")
                yield self.row(f"datasets[{i}].caption_dropout")
        yield Static("", id="caption-count", markup=False)
        with Horizontal(classes="row"):
            yield Button("Add [trigger] t".replace("[", "\\["), id="add-trigger", compact=True)
            yield Button("Fill captions i", id="fill", compact=True)
            yield Button("Take back z", id="take-back", compact=True)
        yield CaptionTable(id="captions")

    can_be_kept = True

    def parts(self) -> object:
        return list(self.state.draft.folders)

    def come_back(self) -> None:
        self.query_one("#caption-form").scroll_home(animate=False)
        self.query_one(CaptionTable).rewind()
        super().come_back()

    def on_mount(self) -> None:
        self._show_captions()

    def focus_first(self) -> None:
        self.query(FieldInput).first().control.focus()

    def bring_up_to_date(self) -> None:
        super().bring_up_to_date()
        self._show_captions()

    def current(self) -> ClipEntry | None:
        return self.query_one(CaptionTable).current

    def _show_captions(self) -> None:
        job, lists = self.state.job(), self.listed()
        known = [(listed, panel) for listed, panel in zip(lists, job.datasets, strict=True) if listed is not None]
        clips = sum(len(listed.training.clips) for listed, _ in known)
        own = sum(listed.own_captions for listed, _ in known)
        bare = sum(
            len(listed.training.clips) - listed.own_captions for listed, panel in known if not panel.default_caption
        )
        text = f"{own} of {count(clips, 'clip')} have their own caption"
        if clips - own - bare:
            text += f", {clips - own - bare} {'uses' if clips - own - bare == 1 else 'use'} the default caption"
        if bare:
            text += f", ✗ {bare} have none: type a default caption, or write them (i)"
        if unread := sum(folder in self.state.unread for folder in self.state.draft.folders):
            text += f", ✗ {count(unread, 'folder')} not read to the end: l reads again"
        self._counts = text
        label = self.query_one("#caption-count", Static)
        label.set_class(bool(bare or unread), "problem")
        self.show_progress()
        shown = [listed.entries for listed, _ in known]  # the same ones, though clips are left out of them
        if list(map(id, shown)) != list(map(id, self._shown)):
            self._shown = shown
            self._entries = [entry for entries in shown for entry in entries]
        left_out = [listed.left_out if listed is not None else frozenset() for listed in lists]
        self.query_one(CaptionTable).show(self._entries, job.datasets, left_out, job.job.trigger)
        self.query_one("#take-back").display = len(self.state.captions) > 0

    @on(LongTable.Chosen, "#captions")
    def _open_clip(self) -> None:
        entry = self.current()
        if entry is not None:
            self.edit_caption(entry)

    @on(Button.Pressed, "#add-trigger")
    def _add_trigger(self) -> None:
        self.action_add_trigger()

    @on(Button.Pressed, "#fill")
    def _fill(self) -> None:
        self.action_fill_captions()

    @on(Button.Pressed, "#take-back")
    def _take_back(self) -> None:
        self.action_take_back()

    def show_progress(self) -> None:
        looks = [look_text(look) for look in self.state.looks.values() if not look.ended]
        text = f"… {', '.join(looks)}, Esc stops. {self._counts}" if looks else self._counts
        if text != self._said:
            self._said = text
            for label in self.query("#caption-count").results(Static):  # none while the step is being left
                label.update(text, layout=False)
                width, height = label.content_size
                if label.visual.get_height(label.styles.get_rules(), max(width, 1)) != height:
                    label.refresh(layout=True)

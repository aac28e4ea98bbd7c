"""Step 3: the job's name, the trigger word, default captions, and how every caption will read.

How captions are read is presets.clips.captions's.
"""

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from wanlora_tui.output.formatting import count, home_path
from wanlora_tui.screens.wizard.pane import StepPane, look_text
from wanlora_tui.widgets.clip_table import CaptionTable
from wanlora_tui.widgets.field_input import FieldInput


class CaptionsPane(StepPane):
    DEFAULT_CSS = """
    CaptionsPane #caption-form { height: auto; max-height: 60%; }
    CaptionsPane .heading { text-style: bold; height: 1; margin-top: 1; }
    CaptionsPane #caption-count { height: auto; margin-top: 1; }
    """

    _counts = ""

    def compose(self) -> ComposeResult:
        folders = self.state.draft.folders
        with VerticalScroll(id="caption-form", can_focus=False):
            yield self.row("job.name")
            yield self.row("job.trigger")
            for i, folder in enumerate(folders):
                if len(folders) > 1:
                    yield Static(f"{i + 1} {home_path(folder)}", classes="heading", markup=False)
                yield self.row(f"datasets[{i}].default_caption")
                yield self.row(f"datasets[{i}].caption_dropout")
        yield Static("", id="caption-count", markup=False)
        yield CaptionTable(id="captions")

    def on_mount(self) -> None:
        self._show_captions()

    def focus_first(self) -> None:
        self.query(FieldInput).first().control.focus()

    def bring_up_to_date(self) -> None:
        super().bring_up_to_date()
        self._show_captions()

    def _show_captions(self) -> None:
        job = self.state.job()
        found = [
            (self.state.scans[f], d)
            for f, d in zip(self.state.draft.folders, job.datasets, strict=True)
            if f in self.state.scans
        ]
        clips = [(c, d) for facts, d in found for c in facts.clips]
        own = sum(1 for c, _ in clips if c.has_caption)
        bare = sum(1 for c, d in clips if not c.has_caption and not d.default_caption)
        text = f"{own} of {count(len(clips), 'clip')} have their own caption"
        if len(clips) - own - bare:
            text += f", {len(clips) - own - bare} use the default caption"
        if bare:
            text += f", ✗ {bare} have none: type a default caption"
        self._counts = text
        label = self.query_one("#caption-count", Static)
        label.set_class(bool(bare), "problem")
        self.show_progress()
        self.query_one(CaptionTable).show(found, job.job.trigger)

    def show_progress(self) -> None:
        looks = [look_text(look) for look in self.state.looks.values()]
        self.query_one("#caption-count", Static).update(
            f"… {', '.join(looks)}. {self._counts}" if looks else self._counts
        )

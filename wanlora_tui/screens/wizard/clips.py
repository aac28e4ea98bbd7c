"""Step 2: the folders of clips, what is in them, and what is wrong with them."""

from pathlib import Path

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Button, Input, OptionList, Static
from textual.widgets.option_list import Option

from presets.text import sentences
from wanlora_tui.actions import bindings
from wanlora_tui.output.formatting import count, home_path, shorten
from wanlora_tui.output.typed_paths import absolute
from wanlora_tui.screens.wizard.pane import Choices, Edited, StepPane, look_text
from wanlora_tui.widgets.clip_table import ClipTable
from wanlora_tui.widgets.field_input import FieldInput
from wanlora_tui.widgets.folder_picker import PathInput, PathPicker

GLYPHS = {"error": "✗", "warning": "!", "advice": "i"}


class ClipsPane(StepPane):
    BINDINGS = bindings("wizard.browse", "wizard.remove")
    DEFAULT_CSS = """
    ClipsPane #folder { width: 1fr; }
    ClipsPane #folder-label { width: 8; }
    ClipsPane #folders { height: auto; max-height: 4; border: none; padding: 0; }
    ClipsPane #problems { height: auto; max-height: 4; }
    ClipsPane #problems Static { height: auto; }
    ClipsPane #frames { height: auto; }
    """

    def compose(self) -> ComposeResult:
        with Horizontal(classes="row"):
            yield Static("Folder", id="folder-label")
            yield PathInput(base=self.state.cwd, placeholder="a folder of clips, such as ~/clips/orbit", id="folder")
            yield Button("Add", id="add", compact=True)
            yield Button("Browse F4", id="browse", compact=True)
            yield Button("Remove F9", id="remove", compact=True)
        yield Static("", id="folder-problem", classes="problem", markup=False)
        yield Choices(id="folders", compact=True, markup=False)
        with VerticalScroll(id="problems", can_focus=False):
            yield Static("", id="problem-text", classes="problem", markup=False)
        yield Vertical(id="frames")
        yield ClipTable(id="clips")

    async def on_mount(self) -> None:
        self._list_folders(0)
        await self._show_folder()

    def focus_first(self) -> None:
        self.query_one("#clips" if self.state.draft.folders else "#folder").focus()

    def bring_up_to_date(self) -> None:
        self._list_folders(self._current)
        self.call_next(self._show_folder)

    @property
    def _current(self) -> int:
        return self.query_one("#folders", Choices).highlighted or 0

    def _list_folders(self, highlight: int) -> None:
        folders = self.query_one("#folders", Choices)
        with self.prevent(OptionList.OptionHighlighted):
            folders.clear_options()
            folders.add_options([Option(self._line(i, f)) for i, f in enumerate(self.state.draft.folders)])
            folders.highlighted = (
                min(highlight, len(self.state.draft.folders) - 1) if self.state.draft.folders else None
            )
        folders.display = bool(self.state.draft.folders)

    def _line(self, index: int, folder: str) -> str:
        name = f"{index + 1} {shorten(home_path(folder), 38)}"
        found = self.state.scans.get(folder)
        if found is None:
            look = self.state.looks.get(folder)
            return f"{name}   … {look_text(look) if look is not None else 'looking at the clips'}"
        unusable = sum(1 for p in found.problems if p.severity == "error")
        seconds = sum(c.duration for c in found.clips)
        return f"{name}   {count(len(found.clips), 'clip')}, {seconds:.0f} s" + (
            f"   ✗ {count(unusable, 'problem')}" if unusable else "   ✓"
        )

    def show_progress(self) -> None:
        for i, folder in enumerate(self.state.draft.folders):
            if folder in self.state.looks:
                self.query_one("#folders", Choices).replace_option_prompt_at_index(i, self._line(i, folder))

    async def _show_folder(self) -> None:
        """Problems, frames and clips of the highlighted folder."""
        folders, index = self.state.draft.folders, self._current
        found = self.state.scans.get(folders[index]) if index < len(folders) else None
        order = sorted(found.problems, key=lambda p: list(GLYPHS).index(p.severity)) if found else []
        self.query_one("#problem-text", Static).update(
            "\n".join(f"{GLYPHS[p.severity]} {sentences(p.message, p.fix)}" for p in order)
        )
        self.query_one("#problems").display = bool(order)
        table, ready = self.query_one(ClipTable), self.state.ready
        table.display = found is not None and bool(found.clips)
        path = f"datasets[{index}].num_frames"
        rows = [row.path for row in self.query(FieldInput)]
        wanted = [path] if ready and index < len(folders) else []
        if rows != wanted:
            frames = self.query_one("#frames")
            await frames.remove_children()
            await frames.mount(*(self.row(p) for p in wanted))
        super().bring_up_to_date()
        if found is not None:
            cursor = table.cursor_row
            table.show(found, self.state.job().datasets[index] if ready else None)
            table.move_cursor(row=min(cursor, max(0, table.row_count - 1)))

    @on(OptionList.OptionHighlighted)
    async def _highlighted(self, event: OptionList.OptionHighlighted) -> None:
        event.stop()
        await self._show_folder()

    @on(Input.Submitted, "#folder")
    @on(Button.Pressed, "#add")
    def _add_typed(self) -> None:
        box = self.query_one("#folder", PathInput)
        if box.value.strip():
            self._add(absolute(box.value, self.state.cwd))
        else:
            self.query_one("#folder-problem", Static).update("✗ Type a folder first, or browse with F4")

    def _add(self, folder: Path) -> None:
        problem = self.state.add_folder(folder)
        self.query_one("#folder-problem", Static).update(f"✗ {problem}" if problem else "")
        if not problem:
            self.query_one("#folder", PathInput).value = ""
            self._list_folders(len(self.state.draft.folders) - 1)
            self.post_message(Edited(scan=True))

    @on(Button.Pressed, "#browse")
    def action_browse(self) -> None:
        self._browse()

    @work
    async def _browse(self) -> None:
        typed = self.query_one("#folder", PathInput).value
        last = self.state.draft.folders[-1] if self.state.draft.folders else str(self.state.cwd)
        start = absolute(typed, self.state.cwd) if typed.strip() else Path(last)
        picked = await self.app.push_screen_wait(PathPicker(start, title="A folder of clips"))
        if picked is not None:
            self._add(Path(picked))

    @on(Button.Pressed, "#remove")
    def action_remove(self) -> None:
        if self.state.draft.folders:
            self.state.remove_folder(self._current)
            self._list_folders(self._current)
            self.post_message(Edited())

"""Step 2: the folders of clips, what is in them, and what is wrong with them."""

from collections.abc import Set
from pathlib import Path

from textual import events, on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Button, Input, OptionList, Static
from textual.widgets.option_list import Option

from presets.clips.clip_facts import DatasetFacts
from presets.clips.likeness.training_view import view_lines
from presets.findings import Finding
from presets.text import escaped, sentences
from wanlora_tui.actions import bindings
from wanlora_tui.draft.clip_list import ClipEntry, ClipLists, Listed
from wanlora_tui.draft.job_draft import WizardState
from wanlora_tui.output.formatting import count, home_path, shorten
from wanlora_tui.output.typed_paths import absolute
from wanlora_tui.screens.frame.button_label import set_label
from wanlora_tui.screens.wizard.mending import MendingPane
from wanlora_tui.screens.wizard.pane import Choices, Edited, look_text
from wanlora_tui.widgets.clip_frames import ClipFrames
from wanlora_tui.widgets.clip_table import ClipTable
from wanlora_tui.widgets.folder_picker import PathInput, PathPicker
from wanlora_tui.widgets.long_table import LongTable

GLYPHS = {"error": "✗", "warning": "!", "advice": "i"}
ROOMY, LOW = 110, 18  # columns from which the pictures stand beside the table, rows below which space is saved
MOST_SAID = 20  # problems of a folder in words; more are counted


class ClipsPane(MendingPane):
    BINDINGS = bindings(
        "wizard.browse", "wizard.remove", "wizard.leave_out", "wizard.add_trigger", "wizard.fill_captions",
        "wizard.take_back", "wizard.read_again", "wizard.stop_looking",
    )  # fmt: skip
    DEFAULT_CSS = """
    ClipsPane #folder { width: 1fr; }
    ClipsPane #folder-label { width: 8; }
    ClipsPane #folders { height: auto; max-height: 4; border: none; padding: 0; }
    ClipsPane #problems { height: auto; max-height: 4; }
    ClipsPane #problems Static { height: auto; }
    ClipsPane #frames { height: auto; }
    ClipsPane #mend { display: none; }
    ClipsPane #leave-out { width: 13; }
    ClipsPane.-folders #mend { display: block; }
    ClipsPane #leave-out, ClipsPane #caption { display: none; }
    ClipsPane.-clips #leave-out, ClipsPane.-clips #caption { display: block; }
    ClipsPane #clip-area { height: 1fr; min-height: 4; }
    ClipsPane #look { display: none; width: 44; height: 1fr; padding-left: 1; }
    ClipsPane #seen { height: 2; color: $text-muted; display: none; }
    ClipsPane.-clips #seen { display: block; }
    ClipsPane.-clips.-roomy #look { display: block; }
    ClipsPane.-clips.-roomy #seen { display: none; }
    ClipsPane.-low #problems { max-height: 2; }
    """

    def compose(self) -> ComposeResult:
        with Horizontal(id="folder-row", classes="row"):
            yield Static("Folder", id="folder-label")
            yield PathInput(base=self.state.cwd, placeholder="a folder of clips, such as ~/clips/orbit", id="folder")
            yield Button("Add", id="add", compact=True)
            yield Button("Browse ^O", id="browse", compact=True)
            yield Button("Remove ^X", id="remove", compact=True)
        yield Static("", id="folder-problem", classes="problem", markup=False)
        yield Choices(id="folders", compact=True, markup=False)
        with VerticalScroll(id="problems", can_focus=False):
            yield Static("", id="problem-text", classes="problem", markup=False)
        yield Vertical(id="frames")
        with Horizontal(id="mend", classes="row"):
            yield Button("Leave out x", id="leave-out", compact=True)
            yield Button("Look, caption Enter", id="caption", compact=True)
            yield Button("Read again l", id="read-again", compact=True)
            yield Button("Stop Esc", id="stop", compact=True)
        with Horizontal(id="clip-area"):
            yield ClipTable(id="clips")
            yield ClipFrames(id="look")
        yield Static("", id="seen", markup=False)

    _problems, _out = "", False

    def __init__(self, state: WizardState, lists: ClipLists) -> None:
        super().__init__(state, lists)
        self._lines: list[str] = []  # of the folders, as they are shown
        self._set_classes(0)  # once it stands there, the styles of all that is in it would be looked up anew

    @property
    def can_be_kept(self) -> bool:
        """Unless something stands at the folder that a new one would not say."""
        said = self.query_one("#folder-problem", Static).content
        return not said and not self.query_one("#folder", PathInput).value

    def parts(self) -> object:
        return list(self.state.draft.folders)

    def come_back(self) -> None:
        self.query_one(ClipTable).rewind()
        self.query_one("#problems").scroll_home(animate=False)
        with self.prevent(OptionList.OptionHighlighted):
            self.query_one("#folders", Choices).highlighted = 0 if self._lines else None
        super().come_back()

    async def on_mount(self) -> None:
        self.query_one("#problems").display = False
        self._list_folders(0)
        await self._show_folder()

    def on_resize(self) -> None:
        self.set_class(self.size.width >= ROOMY, "-roomy")
        self.set_class(self.size.height < LOW, "-low")
        if self.is_mounted and self.has_class("-clips"):
            self.call_after_refresh(self._show_clip)

    def focus_first(self) -> None:
        self.query_one("#clips" if self.state.draft.folders else "#folder").focus()

    def bring_up_to_date(self) -> None:
        self._list_folders(self._current)
        self.call_next(self._show_folder)

    def on_key(self, event: events.Key) -> None:
        """Down goes from the row with the folder to the clips: the buttons behind it are reached by Tab."""
        if event.key == "down" and self.has_class("-folders") and self.query_one("#folder-row").has_focus_within:
            event.stop()
            self.query_one("#clips" if self.has_class("-clips") else "#folders").focus()

    def action_stop_looking(self) -> None:
        """The keys that are offered then are no letters of another folder."""
        super().action_stop_looking()
        if self.query_one("#folder").has_focus and not self.query_one("#folder", PathInput).value:
            self.query_one("#folders").focus()

    @property
    def _current(self) -> int:
        return self.query_one("#folders", Choices).highlighted or 0

    def _list_folders(self, highlight: int) -> None:
        folders = self.query_one("#folders", Choices)
        lines = [self._line(i, f) for i, f in enumerate(self.state.draft.folders)]
        at = min(highlight, len(lines) - 1) if lines else None
        with self.prevent(OptionList.OptionHighlighted):
            if len(lines) != len(self._lines):
                folders.clear_options()
                folders.add_options(map(Option, lines))
            for i, (line, before) in enumerate(zip(lines, self._lines, strict=False)):
                if line != before and len(lines) == len(self._lines):
                    folders.replace_option_prompt_at_index(i, line)
            self._lines = lines
            if folders.highlighted != at:
                folders.highlighted = at
        folders.display = bool(lines)

    def current(self) -> ClipEntry | None:
        return self.query_one(ClipTable).current if self.has_class("-clips") else None

    def _line(self, index: int, folder: str) -> str:
        name = f"{index + 1} {shorten(home_path(folder), 38)}"
        listed, look = self.lists.listed(index), self.state.looks.get(folder)
        if listed is None:
            if (problem := self.state.unread.get(folder)) is not None:
                return f"{name}   {'✗ died while it was read' if problem else '■ not read'}: l reads it, ^X removes it"
            return f"{name}   … {look_text(look) if look is not None else 'looking at the clips'} · Esc stops"
        wrong = sum(1 for p in (*self._unread(index), *listed.training.problems) if p.severity == "error")
        masks = f", {listed.masked} masked" if listed.masked else ""
        left_out = f", {listed.out} left out" if listed.out else ""
        if held := len(self._held(listed.found)):
            left_out = f", {held} held out{left_out}"
        waits = f"   … {look_text(look)} alike · Esc stops" if look is not None and not look.ended else ""
        return f"{name}   {count(len(listed.training.clips), 'clip')}, {listed.seconds:.0f} s{masks}{left_out}" + (
            f"   ✗ {count(wrong, 'problem')}{waits}" if wrong else f"   ✓{waits}"
        )

    def show_progress(self) -> None:
        for folders in self.query("#folders").results(Choices):  # none while the step is being left
            for i, folder in enumerate(self.state.draft.folders[: len(self._lines)]):
                if folder in self.state.looks and (line := self._line(i, folder)) != self._lines[i]:
                    self._lines[i] = line
                    folders.replace_option_prompt_at_index(i, line)

    async def _show_folder(self) -> None:
        """Problems, frames and clips of the highlighted folder."""
        folders, index = self.state.draft.folders, self._current
        self.made_of = self.parts()
        listed = self._set_classes(index)
        self._show_problems([*self._unread(index), *(listed.training.problems if listed else [])])
        ready = self.state.ready
        table = self.query_one(ClipTable)
        table.display = self.has_class("-clips")
        path = f"datasets[{index}].num_frames"
        rows = [row.path for row in self.rows()]
        wanted = [path] if ready and index < len(folders) else []
        if rows != wanted:
            frames = self.query_one("#frames")
            await frames.remove_children()
            await frames.mount(*(self.row(p) for p in wanted))
        super().bring_up_to_date()
        self.query_one("#stop").display = self.reading
        if listed is not None:
            panel = self.state.job().datasets[index] if ready else None
            twins = self.state.twins.get(folders[index], {})
            table.held = self._held(listed.found)
            table.show(listed.entries, panel, listed.left_out, twins, masks=bool(listed.masked))
            self._show_clip()

    def _set_classes(self, index: int) -> Listed | None:
        folders = self.state.draft.folders
        listed = self.lists.listed(index) if index < len(folders) else None
        self.set_class(listed is not None and bool(listed.entries), "-clips")
        self.set_class(bool(folders), "-folders")
        return listed

    def _held(self, found: DatasetFacts) -> Set[str]:
        """Paths of the clips of a folder that measure the loss and do not train."""
        return self.state.held_out.get(found.path, frozenset())

    def follow_held_out(self) -> None:
        """Which clips are held out follows every change of the job a moment later."""
        for table in self.query(ClipTable):  # none while the step is being left
            index = self._current
            listed = self.lists.listed(index) if index < len(self.state.draft.folders) else None
            if listed is not None and table.held != self._held(listed.found):
                table.held = self._held(listed.found)
                table.draw_changed()
                self._list_folders(index)
                self._show_clip()

    def _unread(self, index: int) -> list[Finding]:
        """What the look at a folder has died of."""
        folder = "".join(self.state.draft.folders[index : index + 1])
        if not (problem := self.state.unread.get(folder)):
            return []
        message = "What is alike in it is not known" if folder in self.state.scans else "It could not be read"
        message, fix = f"{message}: {escaped(problem)}", "l reads it again"
        return [Finding(code="not-read", severity="error", field=folder, message=message, fix=fix)]

    def _show_problems(self, problems: list[Finding]) -> None:
        order = sorted(problems, key=lambda p: list(GLYPHS).index(p.severity))
        text = "\n".join(f"{GLYPHS[p.severity]} {sentences(p.message, p.fix)}" for p in order[:MOST_SAID])
        if len(order) > MOST_SAID:
            text += f"\nand {len(order) - MOST_SAID} more; the table marks them with ✗"
        if text != self._problems:
            self._problems = text
            self.query_one("#problem-text", Static).update(text)
            self.query_one("#problems").display = bool(order)

    def _show_clip(self) -> None:
        """What training sees of the clip under the cursor."""
        if self._pruning:  # the step is being left, and what was to come after a frame comes all the same
            return
        table, entry = self.query_one(ClipTable), self.current()
        out = entry is not None and entry.name in table.left_out
        if out != self._out:
            self._out = out
            set_label(self.query_one("#leave-out", Button), "Take in x" if out else "Leave out x")
        held = entry is not None and entry.path in table.held and not out
        note = "" if entry is None else "⊘ left out: it does not train" if out else entry.problem
        note = "○ held out: it measures the loss, and does not train" if held else note
        clip = entry.clip if entry is not None else None
        if self.has_class("-roomy"):
            self.query_one(ClipFrames).show(clip, table.panel, note=note)
            return
        lines = view_lines(clip, table.panel) if clip is not None and table.panel is not None else []
        said = escaped("\n".join([note, *lines[:1]] if held else [note] if note else lines))
        seen = self.query_one("#seen", Static)
        if seen.content != said:
            seen.update(said, layout=False)

    @on(LongTable.Highlighted, "#clips")
    def _clip_highlighted(self, event: LongTable.Highlighted) -> None:
        event.stop()
        self._show_clip()

    @on(Button.Pressed, "#caption")
    @on(LongTable.Chosen, "#clips")
    def _open_clip(self) -> None:
        entry = self.current()
        if entry is not None:
            self.edit_caption(entry)

    @on(Button.Pressed, "#leave-out")
    def _leave_out(self) -> None:
        self.action_leave_out()

    @on(Button.Pressed, "#read-again")
    def _read_again(self) -> None:
        self.action_read_again()

    @on(Button.Pressed, "#stop")
    def _stop(self) -> None:
        self.action_stop_looking()

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
            self.query_one("#folder-problem", Static).update("✗ Type a folder first, or browse with ^O")

    @on(Input.Changed, "#folder")
    def _folder_typed(self) -> None:
        """What was wrong is not said about another text."""
        said = self.query_one("#folder-problem", Static)
        if said.content:
            said.update("")

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

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "remove":
            return bool(self.state.draft.folders)
        return super().check_action(action, parameters)

    @on(Button.Pressed, "#remove")
    def action_remove(self) -> None:
        if self.state.draft.folders:
            self.state.unread.pop(self.state.draft.folders[self._current], None)
            self.state.remove_folder(self._current)
            self._list_folders(self._current)
            self.post_message(Edited())

"""Choosing a folder or a file: a path input that completes as a shell does, and a tree to browse."""

import asyncio
import os
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rich.style import Style
from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.suggester import Suggester
from textual.widgets import Button, DirectoryTree, Input, Static, Tree
from textual.widgets.directory_tree import DirEntry
from textual.widgets.tree import TreeNode

from presets.clips.clip_facts import CLIP_SUFFIXES
from presets.file_names import escaped, is_utf8
from wanlora_tui.actions import bindings
from wanlora_tui.output.formatting import count
from wanlora_tui.output.typed_paths import absolute, complete_path
from wanlora_tui.widgets.fitting_footer import FittingFooter
from wanlora_tui.widgets.pasting import OneLine
from wanlora_tui.widgets.redraw_throttle import Answers, Dialog

MOST_COUNTED = 20_000  # entries of a folder that are looked at for its count
COUNT_DELAY = 0.05  # seconds in which folders that come into view are gathered, to be counted together


class _PathSuggester(Suggester):
    def __init__(self, base: Path, suffixes: frozenset[str] | None) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self.base, self.suffixes = base, suffixes

    async def get_suggestion(self, value: str) -> str | None:
        whole = await asyncio.to_thread(complete_path, value, self.base, self.suffixes)  # a network folder may be slow
        return whole if whole and whole.startswith(value) else None  # it is drawn behind what was typed


class PathInput(OneLine):
    """A path being typed. Tab and right take the completion shown; Tab without one goes to the next field."""

    BINDINGS = bindings("form.previous", "form.next", "form.complete")

    def __init__(
        self,
        value: str = "",
        *,
        base: Path,
        suffixes: frozenset[str] | None = None,
        placeholder: str = "",
        id: str | None = None,
    ) -> None:
        super().__init__(value, placeholder=placeholder, suggester=_PathSuggester(base, suffixes), compact=True, id=id)
        self.base, self.suffixes = base, suffixes

    async def action_complete(self) -> None:
        """Looks itself, since keys may come faster than the suggestion that is shown."""
        whole = await asyncio.to_thread(complete_path, self.value, self.base, self.suffixes)
        if whole and whole != self.value:
            self.value = whole
            self.cursor_position = len(whole)
        else:
            self.screen.focus_next()


@dataclass
class _Counted(Message):
    """How many clips, or files of the wanted kinds, folders hold."""

    found: dict[Path, str]


def count_text(folder: Path, suffixes: Collection[str], noun: str) -> str:
    """`12 clips` that lie in a folder itself; "" for none, or for one that cannot be read."""
    try:
        with os.scandir(folder) as entries:
            seen = list(islice(entries, MOST_COUNTED))
            number = sum(
                Path(entry.name).suffix.lower() in suffixes and not entry.name.startswith(".") for entry in seen
            )
    except OSError:
        return ""
    return f"{count(number, noun)}{' or more' if len(seen) == MOST_COUNTED else ''}" if number else ""


class _Tree(DirectoryTree):
    """Folders with how many clips each holds, and the files of some suffixes, with plain icons that every terminal
    has. `needle`: only what has this in its name is shown, and all that lies in such a folder."""

    ICON_NODE, ICON_NODE_EXPANDED, ICON_FILE = "▸ ", "▾ ", "  "
    BINDINGS = bindings(
        "picker.choose",
        "picker.open",
        "picker.close",
        "picker.parent",
        "list.down",
        "list.up",
        "text.top",
        "text.bottom",
    )

    def __init__(self, path: Path, suffixes: frozenset[str] | None) -> None:
        super().__init__(path)
        self.suffixes = suffixes
        self.needle = ""
        self._counts: dict[Path, str] = {}
        self._waiting: dict[Path, TreeNode[DirEntry]] = {}  # folders in view that nobody has counted yet

    def render_label(self, node: TreeNode[DirEntry], base_style: Style, style: Style) -> Text:
        label = super().render_label(node, base_style, style)
        if node.data is None or not node.allow_expand:
            return label
        path = Path(node.data.path)
        if path in self._counts:
            return label.append(f"   {self._counts[path]}", base_style + Style(dim=True))
        if not self._waiting:
            self.set_timer(COUNT_DELAY, self._count_waiting)
        self._waiting[path] = node
        return label

    def _count_waiting(self) -> None:
        self._count(list(self._waiting))

    @work(thread=True, group="counts", exit_on_error=False)
    def _count(self, folders: list[Path]) -> None:
        suffixes, noun = (CLIP_SUFFIXES, "clip") if self.suffixes is None else (self.suffixes, "file")
        self.post_message(_Counted({folder: count_text(folder, suffixes, noun) for folder in folders}))

    @on(_Counted)
    def _counted(self, event: _Counted) -> None:
        event.stop()
        self._counts |= event.found
        waiting, self._waiting = self._waiting, {}
        for path, node in waiting.items():
            if path in self._counts:
                node.refresh()
            else:  # it came into view meanwhile
                self._waiting[path] = node
        if self._waiting:
            self.set_timer(COUNT_DELAY, self._count_waiting)

    def filter_paths(self, paths: "list[Path]") -> "list[Path]":  # type: ignore[override]
        return [
            p
            for p in paths
            if not p.name.startswith(".")
            and self.needle in str(p.relative_to(self.path)).lower()
            and (p.is_dir() or (self.suffixes is not None and p.suffix.lower() in self.suffixes))
        ]

    async def show_only(self, needle: str) -> None:
        """With the cursor on the first thing that is left, and not on the top folder."""
        self.needle = needle
        await self.reload()
        # It hears only now that its top folder is open. Within the next reload it would read that once more, and take
        # the cursor away.
        heard = asyncio.Event()
        if self.call_later(heard.set):
            await heard.wait()
        self.cursor_line = min(1, self.last_line)

    def action_choose(self) -> None:
        assert isinstance(self.screen, PathPicker)
        if self.cursor_node is not None and self.cursor_node.data is not None:
            self.screen.choose(self.cursor_node.data.path)

    def action_open_folder(self) -> None:
        if self.cursor_node is not None and self.cursor_node.allow_expand:
            self.cursor_node.expand()

    def action_close_folder(self) -> None:
        node = self.cursor_node
        if node is not None and node.is_expanded and node.parent is not None:
            node.collapse()
        elif node is not None and node.parent is not None:
            self.move_cursor(node.parent)
        else:
            self.action_parent()

    def action_parent(self) -> None:
        self.path = Path(self.path).parent
        self.screen.query_one("#picker-path", Input).value = str(self.path)


class PathPicker(Dialog[str | None]):
    """Pick a folder (`suffixes` None) or a file. Dismisses with its absolute path, or None."""

    BINDINGS = bindings("dialog.cancel", "picker.filter", "app.help")
    VERTICAL_BREAKPOINTS = [(0, "-low"), (18, "-high")]  # noqa: RUF012  (Textual's own declaration)
    DEFAULT_CSS = """
    PathPicker #picker-filter { display: none; }
    PathPicker #picker-filter.-open { display: block; }
    PathPicker { align: center middle; }
    PathPicker > Vertical {
        width: 90%; max-width: 100; height: 90%; border: round $primary; padding: 0 1; background: $surface;
    }
    PathPicker DirectoryTree { height: 1fr; background: $surface; }
    PathPicker #picker-row { dock: bottom; }
    PathPicker #picker-problem { height: auto; color: $text-error; }
    PathPicker #picker-hint { height: auto; color: $text-muted; }
    PathPicker.-low #picker-hint { display: none; }
    PathPicker Button { min-width: 0; margin-right: 2; }
    """

    def __init__(self, start: Path, *, title: str, suffixes: frozenset[str] | None = None) -> None:
        super().__init__()
        while not start.is_dir() and start != start.parent:
            start = start.parent
        self.start, self.picker_title, self.suffixes = start, title, suffixes

    def compose(self) -> ComposeResult:
        what = "folder" if self.suffixes is None else "file"
        with Vertical() as box:
            box.border_title = self.picker_title
            yield PathInput(str(self.start), base=self.start, suffixes=self.suffixes, id="picker-path")
            yield Static("", id="picker-problem", markup=False)
            yield OneLine(placeholder="part of a name", id="picker-filter", compact=True)
            yield _Tree(self.start, self.suffixes)
            yield Static(
                f"Enter takes the {what} · right opens a folder · left closes it · backspace goes up · / filters",
                id="picker-hint",
            )
            with Answers(id="picker-row"):
                yield Button(f"Take this {what}", id="picker-take", variant="primary", compact=True)
                yield Button("Cancel", id="picker-cancel", compact=True)
        yield FittingFooter(compact=False, spare=("picker.close", "picker.open", "picker.parent", "picker.choose"))

    def on_mount(self) -> None:
        self.query_one(_Tree).focus()

    @on(Tree.NodeHighlighted)
    def _highlighted(self, event: Tree.NodeHighlighted[DirEntry]) -> None:
        path = self.query_one(PathInput)
        if event.node.data is not None and self.focused is not path:  # in which somebody types by now
            path.value = str(event.node.data.path)

    @on(Input.Changed, "#picker-path")
    def _path_changed(self) -> None:
        self.query_one("#picker-problem", Static).update("")  # it was of another path

    def action_filter(self) -> None:
        box = self.query_one("#picker-filter", Input)
        box.add_class("-open")
        box.focus()

    @on(Input.Changed, "#picker-filter")
    async def _filtered(self, event: Input.Changed) -> None:
        event.stop()
        tree = self.query_one(_Tree)
        await tree.show_only(event.value.strip().lower())
        if "/" in event.value and not tree.root.children:
            self._take_as_path()

    def _take_as_path(self) -> None:
        """What was typed was no part of a name: the slash that opened the filter began it."""
        box, path = self.query_one("#picker-filter", Input), self.query_one(PathInput)
        path.value = f"/{box.value}"
        path.cursor_position = len(path.value)
        path.select_on_focus = False  # what is typed next goes on
        self.set_focus(path)
        box.remove_class("-open")
        with box.prevent(Input.Changed):
            box.value = ""

    @on(Input.Submitted, "#picker-filter")
    def _filter_done(self, event: Input.Submitted) -> None:
        """Back to the tree."""
        event.stop()
        self.query_one(_Tree).focus()

    @on(Input.Submitted, "#picker-path")
    @on(Button.Pressed, "#picker-take")
    def _take(self) -> None:
        self.choose(absolute(self.query_one("#picker-path", Input).value, self.start))

    @on(Button.Pressed, "#picker-cancel")
    def action_cancel(self) -> None:
        self.dismiss(None)

    def choose(self, path: Path) -> None:
        """Dismiss with the path, or say why it cannot be taken."""
        problem = ""
        if not is_utf8(str(path)):
            problem = f"✗ {escaped(path.name)}: the path is not UTF-8, so no job can name it. Rename it first"
        elif self.suffixes is None and not path.is_dir():
            problem = f"✗ {path} is not a folder"
        elif self.suffixes is not None and not path.is_file():
            problem = (
                "✗ This is a folder: open it (right arrow) and take a file"
                if path.is_dir()
                else f"✗ No such file: {path}"
            )
        self.query_one("#picker-problem", Static).update(problem)
        if not problem:
            self.dismiss(str(path))

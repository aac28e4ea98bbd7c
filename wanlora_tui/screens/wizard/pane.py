"""What the steps of the wizard have in common."""

from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from textual.containers import Container, Vertical
from textual.message import Message
from textual.visual import VisualType
from textual.widget import Widget
from textual.widgets import OptionList

from presets.base.tensor_files import FORMATS
from presets.clips.clip_facts import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from presets.look import Look
from wanlora_tui.actions import bindings
from wanlora_tui.draft.job_draft import WizardState
from wanlora_tui.widgets.field_input import FieldInput

LORA_SUFFIXES = frozenset({".safetensors"})
WEIGHTS = (  # fields that name a file of weights
    "quantization.ara",
    "sample.accelerator",
    "sample.accelerator_low",
    "model.vae",
    "model.text_encoder",
    "target.start_high",
    "target.start_low",
)
MODEL_SUFFIXES = frozenset(FORMATS)


def look_text(look: Look) -> str:
    """`looking at clips 120/5000`, or how many files were found while they are listed."""
    return (
        f"looking at clips {look.done}/{look.total}"
        if look.total
        else f"listing files ({look.done})"
        if look.done
        else "looking at the clips"
    )


class Edited(Message):
    """The draft has changed: keep it, and bring what is shown up to date. `scan`: folders have to be read."""

    def __init__(self, *, scan: bool = False) -> None:
        super().__init__()
        self.scan = scan


class Choices(OptionList):
    """An OptionList with the keys of vim lists."""

    BINDINGS = bindings("list.down", "list.up", "list.top", "list.bottom")

    def replace_option_prompt_at_index(self, index: int, prompt: VisualType) -> Self:
        """The list is as high as its lines at once: Textual compares heights when it draws, and would not see one that
        was laid out and never drawn."""
        before = self._lines_in_all
        super().replace_option_prompt_at_index(index, prompt)
        if self._lines_in_all != before:
            self.refresh(layout=True)
        return self

    @property
    def _lines_in_all(self) -> int:
        width = self.size.width
        return self.get_content_height(self.container_size, self.app.size, width) if width else 0


class StepPane(Vertical):
    """One step: shown as if it were made anew each time it is entered, from the state alone."""

    BINDINGS = bindings("wizard.recommended")
    DEFAULT_CSS = """
    StepPane { padding: 0 1; }
    StepPane .problem { color: $text-error; height: auto; }
    StepPane .muted { color: $text-muted; height: auto; }
    StepPane .row { height: 1; overflow-x: auto; scrollbar-size-horizontal: 0; }
    StepPane .row > Input { min-width: 16; }
    StepPane Button { margin-left: 1; min-width: 0; }
    StepPane OptionList, StepPane OptionList:focus { border: none; padding: 0; background: transparent; }
    StepPane DataTable { height: 1fr; min-height: 4; }
    """

    def __init__(self, state: WizardState) -> None:
        super().__init__()
        self.state = state
        self._rows: list[FieldInput] = []  # made by `row`
        self.look: Look | None = None  # at clips, when the step has one of its own under way
        self._making = self._behind = False
        self.made_of: object = None  # what `parts` were when it was made

    # Left and entered again

    @property
    def can_be_kept(self) -> bool:
        """It can be shown again as a new one would be, once it has come back."""
        return False

    def parts(self) -> object:
        """What follows no change of the state while the step stands there."""
        return None

    def fits(self, field: str) -> bool:
        """It can come back: a new one would have the same parts, and show the same field."""
        return self.made_of == self.parts() and all(
            row.typed == self.state.draft.typed.get(row.path) and row.base in (None, self.base_folder())
            for row in self.rows()
        )

    def come_back(self) -> None:
        """Into view again, as a new one would be."""
        for row in self.rows():
            row.set_placeholder(self.state.placeholder(row.path))
            row.set_meaning(self.state.means.get(row.path, ""))
        self.bring_up_to_date()
        for row in self.rows():
            row.rewind()

    @asynccontextmanager
    async def making(self) -> AsyncIterator[None]:
        """While rows come and go: what is read meanwhile is shown once they stand there."""
        self._making = True
        try:
            yield
        finally:
            self._making = False
        if self._behind:
            self._behind = False
            self.bring_up_to_date()

    def follow(self) -> None:
        """Facts or fields have changed elsewhere."""
        if self._making:
            self._behind = True
        else:
            self.bring_up_to_date()

    def bring_up_to_date(self) -> None:
        """Show the state again; what is being typed stays."""
        rows = self.rows()
        job = self.state.job() if rows else None
        for row in rows:
            value, (recommended, reason) = self.state.value(row.path, job), self.state.recommended(row.path)
            if (value, recommended, reason) != (row.value, row.recommended, row.reason):
                row.set_value(value, recommended=recommended, reason=reason)
            if row.field.default is None:  # of the others, an empty input stands for nothing
                row.set_placeholder(self.state.placeholder(row.path))

    def rows(self) -> list[FieldInput]:
        """The form rows that stand there, or will in a moment: those take in what comes meanwhile. Looking for them
        among all widgets at each key would cost more than bringing them up to date."""
        self._rows = [row for row in self._rows if row.is_attached or not row.is_mounted]  # but for removed ones
        return list(self._rows)

    def show_progress(self) -> None:
        """Say how far the looks at clips are; called a few times a second while there are any."""

    def row(self, path: str) -> FieldInput:
        """The form row of a field."""
        state = self.state
        recommended, reason = state.recommended(path)
        is_image, is_weights = (
            path.endswith((".ctrl_img", ".end_img")),
            path in WEIGHTS or path.startswith("model.merge["),
        )
        is_path = (
            is_image
            or path in ("model.path", "validation.path")
            or (path.endswith(".path") if path.startswith(("datasets[", "model.merge[")) else is_weights)
        )
        made = FieldInput(
            path,
            state.value(path),
            recommended=recommended,
            reason=reason,
            typed=state.draft.typed.get(path),
            base=self.base_folder() if is_path else None,
            suffixes=IMAGE_SUFFIXES | VIDEO_SUFFIXES
            if is_image
            else MODEL_SUFFIXES
            if path.startswith("model.") and not path.startswith("model.merge[")
            else LORA_SUFFIXES
            if is_weights
            else None,
            placeholder=state.placeholder(path),
            meaning=state.means.get(path, ""),
        )
        self._rows.append(made)
        return made

    def base_folder(self) -> Path:
        return self.state.job_path().parent

    def focus_first(self) -> None:
        """Put the focus where this step begins."""
        raise AssertionError("every step says where it begins")

    def focused_row(self) -> FieldInput | None:
        """The row of this step that has the focus. Asked at every key for the footer: without a look at all rows."""
        focused = self.screen.focused
        above = list(focused.ancestors_with_self) if focused is not None else []
        return next((node for node in above if isinstance(node, FieldInput)), None) if self in above else None

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Recommended is only offered where there is a recommended value to go back to."""
        if action == "recommended":
            row = self.focused_row()
            return row is not None and row.reason is not None
        return super().check_action(action, parameters)

    def action_recommended(self) -> None:
        if (row := self.focused_row()) is not None:
            row.reset()


class StepBox(Container):
    """Where the step in view stands, and those that were left: out of the tree, and ready to be shown again. One that
    is made anew is composed, mounted and styled, which takes most of the time that going there does.

    A step that was left keeps its widgets, their styles and their lines, and its messages go on to the screen. But the
    box has no such child any more: nothing finds it, draws it or walks to it by Tab, and none of its keys acts.
    """

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._shown: StepPane | None = None
        self._step = ""
        self.came_back = False  # the step in view was here before
        self._left: dict[str, tuple[StepPane, Hashable]] = {}  # by name of the step: it, and what it was styled for

    async def show(self, name: str, make: Callable[[], StepPane], field: str) -> StepPane:
        """The step, as if it were made now; `field` is to have the focus."""
        before = self._shown
        if before is not None:
            if name != self._step and before.can_be_kept:
                self._take_out(self._step, before)
            else:
                await before.remove()
        pane, styled_for = self._left.pop(name, (None, None))
        if pane is not None and not (styled_for == self._styled_for() and pane.fits(field)):
            await pane.remove()
            pane = None
        self.came_back = pane is not None
        if pane is None:
            pane = make()
            await self.mount(pane)
        else:
            self._nodes._append(pane)
            pane.come_back()
            self.refresh(repaint=False, layout=True)  # it lies under the step
        self.app._update_mouse_over(self.screen)
        self._shown, self._step = pane, name
        return pane

    def _take_out(self, name: str, pane: StepPane) -> None:
        focused = self.screen.focused
        if focused is not None and pane in focused.ancestors:
            self.screen.set_focus(None)
        self._nodes._remove(pane)
        self._left[name] = pane, self._styled_for()

    def is_left(self, widget: Widget) -> bool:
        """It belongs to a step that is not in view."""
        return any(pane in widget.ancestors_with_self for pane, _ in self._left.values())

    def _styled_for(self) -> Hashable:
        """What styles follow; those that were left are not told of its changes."""
        app = self.app
        return app.size, app.theme, app.pseudo_classes, self.screen.classes

    async def _message_loop_exit(self) -> None:
        """Those that were left end with it."""
        for pane, _ in self._left.values():
            self._nodes._append(pane)
        await super()._message_loop_exit()

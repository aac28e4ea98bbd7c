"""One field of the job as a form row: label, control, what is recommended, and at once what is wrong with the input.

The control follows from the field's description in `presets.job.fields`: a `Choice` when its values can be listed, a
text input otherwise. Nothing here knows a particular field.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.geometry import Size
from textual.message import Message
from textual.reactive import Reactive
from textual.timer import Timer
from textual.widgets import Input, Select, Static

from presets.errors import JobError
from presets.job.fields import Field, field_of
from presets.job.toml_file import parse_value
from wanlora_tui.actions import bindings
from wanlora_tui.output.formatting import shorten, value_text
from wanlora_tui.output.typed_paths import meant
from wanlora_tui.widgets.folder_picker import PathInput
from wanlora_tui.widgets.pasting import OneLine

RECOMMENDED, CHANGED, WRONG = "◆", "●", "✗"
LONGEST_PROBLEM = 200  # of what was typed, it may quote a page
NOTE = 17  # cells that the usual notes need: `● yours, ◆ 0.0001`
REST = 0.4  # seconds without a key before the line of a problem comes under its field, or goes
LEFT_OPEN = ("auto", "model")  # values that say: as it fits


def range_text(field: Field) -> str:
    """Type, limits and unit of a field in a few words: `integer, 1 to 64`."""
    low, high = (f"{v:,.12g}".replace(",", " ") if v is not None else "" for v in (field.minimum, field.maximum))
    if high and len(high) > 12:  # 2**63 - 1 says nothing to a person
        high = ""
    if "above" in field.limits_text or "below" in field.limits_text:  # an end that is not itself allowed
        limits = field.limits_text
    else:
        limits = f"{low} to {high}" if low and high else f"{low} or more" if low else f"up to {high}" if high else ""
    kind = "" if field.choices else field.type_text
    return " ".join(x for x in (", ".join(x for x in (kind, limits) if x), field.unit) if x)


def problem_text(error: JobError) -> str:
    """The first problem of an input without the field path, which the row shows already."""
    text = error.problems[0].partition(": ")[2]
    return shorten(text[0].upper() + text[1:], LONGEST_PROBLEM)


class Choice(Select[Any]):
    """A one-line Select: left and right take the neighbouring choice, Enter or Space lists all, up and down leave."""

    BINDINGS = bindings("form.previous", "form.next", "form.choice_before", "form.choice_after", "form.open")

    def __init__(self, choices: tuple[Any, ...], value: Any) -> None:
        named = [("left out" if c is None else value_text(c), c) for c in choices]
        super().__init__(named, value=value, allow_blank=False, compact=True)
        self.choices = choices

    def action_cycle(self, step: int) -> None:
        self.value = self.choices[(self.choices.index(self.value) + step) % len(self.choices)]


class FieldText(OneLine):
    """A one-line text input that arrow keys leave, as in a form."""

    BINDINGS = bindings("form.previous", "form.next")


def joiner_of(field: Field) -> str | None:
    """What stands for a line break in what is pasted into a field: lines of prose are one text, lines of a list its
    parts, and several numbers are none."""
    return " " if "text" in field.type_text.split() else ", " if "list" in field.type_text else None


class _Said(Static):
    """A short text of a row."""

    # nothing in it scrolls, and Textual would lay the whole screen out a second time when its text has grown
    virtual_size = Reactive(Size(0, 0), layout=False)


class FieldInput(Vertical):
    """The row of one field. Posts `Changed` at every key, with the parsed value or with the error it shows.

    `recommended` is the value that the field would have without the user, `reason` why ("" for a plain default, None
    where only the user can say).
    `typed` is text that was entered before and is no valid value: it is shown again with its error.
    """

    DEFAULT_CSS = """
    FieldInput { height: auto; }
    FieldInput > Horizontal { height: 1; }
    FieldInput .field-label { width: 26; text-overflow: ellipsis; text-wrap: nowrap; }
    FieldInput .field-control { width: 1fr; min-width: 12; max-width: 48; }
    FieldInput.-path .field-control { max-width: 100; }
    FieldInput .field-note {
        width: auto; max-width: 32; padding-left: 1; text-wrap: nowrap; text-overflow: ellipsis;
        color: $text-muted;
    }
    FieldInput .field-note.-usual { min-width: 18; }
    FieldInput .field-error { display: none; color: $text-error; height: auto; padding-left: 2; }
    FieldInput .field-error.-wrong { display: block; }
    FieldInput:focus-within .field-label { text-style: bold; color: $text-primary; }
    FieldInput Select.-textual-compact SelectCurrent { background: $surface; }
    FieldInput Select:focus > SelectCurrent { background: $primary 40%; text-style: bold; }
    FieldInput Input:focus { background: $primary 25%; }
    """

    virtual_size = Reactive(Size(0, 0), layout=False)  # as in _Said

    @dataclass
    class Changed(Message):
        """`value` holds when `error` is ""; otherwise `text` is what was typed. Whoever has taken it in calls
        `row.taken()`."""

        row: "FieldInput"
        path: str
        text: str
        value: Any
        error: str

    def __init__(
        self,
        path: str,
        value: Any,
        *,
        recommended: Any,
        reason: str | None = "",
        typed: str | None = None,
        base: Path | None = None,
        suffixes: frozenset[str] | None = None,
        placeholder: str = "",
        meaning: str = "",
    ) -> None:
        super().__init__(id=field_id(path), classes="-path" if base is not None else "")
        self.path, self.field = path, field_of(path)
        self.value, self.recommended, self.reason, self.typed = value, recommended, reason, typed
        self.base, self.suffixes = base, suffixes  # as for PathInput; base None: the field is no path
        self.placeholder = placeholder  # what an empty input stands for
        self.meaning = meaning  # what comes of a value that is left to the planner
        self.error = ""
        self._note, self._problem = ("", ""), ""  # the note with its style
        self._marked: tuple[Any, ...] | None = None  # what the note was made of
        self._found = ""  # what is wrong with a value that can be one
        self._on_the_way = 0  # changes posted and not yet taken in
        self._turning: Timer | None = None  # the line of a problem is about to come or go

        # kept, because looking for them at every key costs more than all else that a row does
        self._label = Static(f" {self.field.label}", classes="field-label", markup=False)
        self._note_place = _Said("", classes="field-note", markup=False)
        # a note that changes must not lay out the whole screen at a key; a path needs the room, and has hardly any
        self._note_width = NOTE if reason is not None and base is None else 0
        self._note_place.set_class(self._note_width > 0, "-usual")
        self._error_place = _Said("", classes="field-error", markup=False)
        self._control: Choice | FieldText | PathInput | None = None

    def compose(self) -> ComposeResult:
        with Horizontal():
            yield self._label
            self._control = self._make_control()
            yield self._control
            yield self._note_place
        yield self._error_place

    def _make_control(self) -> Choice | FieldText | PathInput:
        if self.field.choices:
            control: Choice | FieldText | PathInput = Choice(self.field.choices, self.value)
        else:
            text = self.typed if self.typed is not None else value_text(self.value)
            if self.base is not None:
                control = PathInput(text, base=self.base, suffixes=self.suffixes)
            else:
                control = FieldText(text, compact=True, placeholder=self.placeholder)
                control.joiner = joiner_of(self.field)
        control.add_class("field-control")
        return control

    def on_mount(self) -> None:
        # all of it may have changed since compose
        if self.typed is not None:
            self._parse(self.typed)
        else:
            self._show_value()
            self._show_problem(self._found)
        if isinstance(self.control, FieldText):
            self.control.placeholder = self.placeholder
        self._mark()

    def on_descendant_focus(self) -> None:
        self._label.update(f"▸{self.field.label}", layout=False)

    def on_descendant_blur(self) -> None:
        if self._turning is not None:
            self._turning.stop()
            self._turn()
        self._label.update(f" {self.field.label}", layout=False)

    @property
    def control(self) -> Choice | FieldText | PathInput:
        assert self._control is not None, "not composed yet"
        return self._control

    def set_value(self, value: Any, *, recommended: Any, reason: str | None) -> None:
        """Bring the row to new values from outside.

        Text that is no valid value yet stays, and so does a path being typed, which means the same before and after it
        was resolved. While changes of this row are on their way, what comes from outside is older than they are.
        """
        self.recommended, self.reason = recommended, reason
        if not self.is_mounted:  # on_mount will show it
            self.value = value
            return
        control = self.control
        if (
            self.typed is None
            and value != self.value
            and not self._on_the_way
            and not (reason is None and control.has_focus)
        ):
            self.value = value
            self._show_value()
        self._mark()

    def set_placeholder(self, text: str) -> None:
        """What an empty input stands for now: it follows another field."""
        self.placeholder = text
        if self.is_mounted and isinstance(self.control, FieldText):
            self.control.placeholder = text

    def set_meaning(self, text: str) -> None:
        """What a value that is left to the planner comes to by now; "" while that is not known."""
        if text != self.meaning:
            self.meaning = text
            if self.is_mounted:
                self._mark()

    def _show_value(self) -> None:
        control = self.control
        control.value = self.value if isinstance(control, Choice) else value_text(self.value)

    def show_problem(self, text: str) -> None:
        """What is wrong with the value, as somebody else has found; "" when nothing is. An input that is no value at
        all says that first."""
        self._found = text
        if self.is_mounted and not self.error:
            self._show_problem(text)

    def _show_problem(self, text: str) -> None:
        """In a line of its own, once its user types no more: the note says at once that it is not valid. Fields that
        jump at every other key are hard to read, and cost a layout of the whole screen each time."""
        if text == self._problem:
            return
        before, self._problem = self._problem, text
        place, shown = self._error_place, f"{WRONG} {text}" if text else ""
        if self._turning is not None:
            self._turning.stop()
            self._turning = None
        is_open = place.has_class("-wrong")
        width = place.content_size.width
        longest = max(cell_len(before) + 2, cell_len(shown))
        place.update(shown, layout=is_open and bool(text) and longest > width)
        if bool(text) == is_open:
            return
        if self.has_focus_within:
            self._turning = self.set_timer(REST, self._turn)
        else:
            self._turn()

    def _turn(self) -> None:
        self._turning = None
        self._error_place.set_class(bool(self._problem), "-wrong")

    def reset(self) -> None:
        """Back to the recommended value, if there is one."""
        if self.reason is None:
            return
        control = self.control
        control.value = self.recommended if isinstance(control, Choice) else value_text(self.recommended)

    def rewind(self) -> None:
        """As a new one: the text as its value is written, and the cursor behind it."""
        control = self.control
        if isinstance(control, Choice):
            return
        if self.typed is None:
            with self.prevent(Input.Changed):
                control.value = value_text(self.value)
        control.cursor_position = len(control.value)

    def taken(self) -> None:
        """A posted change has arrived where the values are kept."""
        self._on_the_way -= 1

    @on(Input.Changed)
    @on(Select.Changed)
    def _edited(self, event: Input.Changed | Select.Changed) -> None:
        """Reads what the control holds by now, since the event may be older than that."""
        event.stop()
        if self._turning is not None:
            self._turning.reset()
        control, before = self.control, (self.value, self.typed)
        if isinstance(control, Choice):
            self.value = control.value
        else:
            self._parse(control.value)
        if (self.value, self.typed) != before:
            self._on_the_way += 1
            self.post_message(
                self.Changed(
                    self,
                    self.path,
                    self.typed if self.typed is not None else value_text(self.value),
                    self.value,
                    self.error,
                )
            )
        self._mark()

    def _parse(self, text: str) -> None:
        given = meant(text, self.base) if self.base is not None else text
        try:
            self.value, self.typed, self.error = parse_value(self.path, given), None, ""
        except JobError as e:
            self.typed, self.error = text, problem_text(e)
        self._show_problem(self.error or self._found)

    def _mark(self) -> None:
        """The note behind the control: a word and a glyph, so that it reads without colour."""
        state = (self.value, self.recommended, self.reason, self.meaning, self.error)
        if state == self._marked:
            return
        self._marked = state
        same = self.value == self.recommended
        # not by a class: that has the note's styles looked up at a key
        style = (
            ""
            if self.error or self.reason is None
            else "$text-warning"
            if not same
            else "$text-success"
            if self.reason
            else ""
        )
        if self.error:
            note = f"{WRONG} not valid"
        elif self.meaning and self.value in LEFT_OPEN:
            own = RECOMMENDED if same and self.reason else "" if same or self.reason is None else CHANGED
            note = f"{own} -> {self.meaning}".lstrip()
        elif self.reason is None:
            note = ""
        elif same:
            note = f"{RECOMMENDED} recommended" if self.reason else "default"
        else:
            wanted = value_text(self.recommended) or "empty"
            note = f"{CHANGED} yours" + (f", {RECOMMENDED} {wanted}" if len(wanted) <= 12 else "")
        if (note, style) != self._note:
            before, self._note = cell_len(self._note[0]), (note, style)
            room = self._note_width
            self._note_place.update(Content.styled(note, style), layout=max(cell_len(note), room) != max(before, room))

    def help_title(self) -> str:
        return f"{self.field.label} · {self.path}"

    def help_lines(self) -> str:
        """What the field means, what it takes, and why its recommended value is recommended."""
        takes = "" if self.field.choices or self.field.type_text == "text" else f" ({range_text(self.field)})"
        if self.reason:
            why = f"{RECOMMENDED} Recommended {value_text(self.recommended) or 'empty'}: {self.reason}"
        elif self.reason is None:
            why = ""
        else:
            why = f"Default: {value_text(self.recommended) or self.placeholder or 'empty'}."
        means = f" For now it comes to: {self.meaning}." if self.meaning and self.value in LEFT_OPEN else ""
        return f"{self.field.help}{takes}\n{why}{means}"


def field_id(path: str) -> str:
    """A widget id for a field path: `datasets[0].num_frames` -> `field-datasets-0-num_frames`."""
    return "field-" + path.replace(".", "-").replace("[", "-").replace("]", "")

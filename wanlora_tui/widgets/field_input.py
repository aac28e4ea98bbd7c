"""One field of the job as a form row: label, control, what is recommended, and at once what is wrong with the input.

The control follows from the field's description in `presets.job.fields`: a `Choice` when its values can be listed, a
text input otherwise. Nothing here knows a particular field.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widgets import Input, Select, Static

from presets.errors import JobError
from presets.job.fields import Field, field_of
from presets.job.toml_file import parse_value
from wanlora_tui.actions import bindings
from wanlora_tui.output.formatting import value_text
from wanlora_tui.widgets.folder_picker import PathInput

RECOMMENDED, CHANGED, WRONG = "◆", "●", "✗"


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
    return text[0].upper() + text[1:]


class Choice(Select[Any]):
    """A one-line Select: left and right take the neighbouring choice, Enter or Space lists all, up and down leave."""

    BINDINGS = bindings("form.previous", "form.next", "form.choice_before", "form.choice_after", "form.open")

    def __init__(self, choices: tuple[Any, ...], value: Any) -> None:
        super().__init__([(value_text(c), c) for c in choices], value=value, allow_blank=False, compact=True)
        self.choices = choices

    def action_cycle(self, step: int) -> None:
        self.value = self.choices[(self.choices.index(self.value) + step) % len(self.choices)]


class FieldText(Input):
    """A one-line text input that arrow keys leave, as in a form."""

    BINDINGS = bindings("form.previous", "form.next")


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
    FieldInput .field-control { width: 1fr; min-width: 14; max-width: 48; }
    FieldInput.-path .field-control { max-width: 100; }
    FieldInput .field-note {
        width: auto; max-width: 32; padding-left: 1; text-wrap: nowrap; text-overflow: ellipsis;
        color: $text-muted;
    }
    FieldInput.-recommended .field-note { color: $text-success; }
    FieldInput.-changed .field-note { color: $text-warning; }
    FieldInput .field-error { display: none; color: $text-error; height: auto; padding-left: 2; }
    FieldInput.-wrong .field-error { display: block; }
    FieldInput:focus-within .field-label { text-style: bold; color: $text-primary; }
    FieldInput Select.-textual-compact SelectCurrent { background: $surface; }
    FieldInput Select:focus > SelectCurrent { background: $primary 40%; text-style: bold; }
    FieldInput Input:focus { background: $primary 25%; }
    """

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
    ) -> None:
        super().__init__(id=field_id(path))
        self.path, self.field = path, field_of(path)
        self.value, self.recommended, self.reason, self.typed = value, recommended, reason, typed
        self.base, self.suffixes = base, suffixes  # as for PathInput; base None: the field is no path
        self.placeholder = placeholder  # what an empty input stands for
        self.error = ""
        self._note = ""
        self._on_the_way = 0  # changes posted and not yet taken in

    def compose(self) -> ComposeResult:
        with Horizontal():
            yield Static(f" {self.field.label}", classes="field-label", markup=False)
            yield self._control()
            yield Static("", classes="field-note", markup=False)
        yield Static("", classes="field-error", markup=False)

    def _control(self) -> Choice | FieldText | PathInput:
        if self.field.choices:
            control: Choice | FieldText | PathInput = Choice(self.field.choices, self.value)
        else:
            text = self.typed if self.typed is not None else value_text(self.value)
            if self.base is not None:
                self.add_class("-path")
                control = PathInput(text, base=self.base, suffixes=self.suffixes)
            else:
                control = FieldText(text, compact=True, placeholder=self.placeholder)
        control.add_class("field-control")
        return control

    def on_mount(self) -> None:
        if self.typed is not None:
            self._parse(self.typed)
        else:
            self._show_value()  # it may have changed since compose
        self._mark()

    def on_descendant_focus(self) -> None:
        self.query_one(".field-label", Static).update(f"▸{self.field.label}", layout=False)

    def on_descendant_blur(self) -> None:
        self.query_one(".field-label", Static).update(f" {self.field.label}", layout=False)

    @property
    def control(self) -> Choice | FieldText | PathInput:
        found = self.query_one(".field-control")
        assert isinstance(found, Choice | FieldText | PathInput)
        return found

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

    def _show_value(self) -> None:
        control = self.control
        control.value = self.value if isinstance(control, Choice) else value_text(self.value)

    def reset(self) -> None:
        """Back to the recommended value, if there is one."""
        if self.reason is None:
            return
        control = self.control
        control.value = self.recommended if isinstance(control, Choice) else value_text(self.recommended)

    def taken(self) -> None:
        """A posted change has arrived where the values are kept."""
        self._on_the_way -= 1

    @on(Input.Changed)
    @on(Select.Changed)
    def _edited(self, event: Input.Changed | Select.Changed) -> None:
        """Reads what the control holds by now, since the event may be older than that."""
        event.stop()
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
        try:
            self.value, self.typed, self.error = parse_value(self.path, text), None, ""
        except JobError as e:
            self.typed, self.error = text, problem_text(e)
        self.set_class(bool(self.error), "-wrong")
        self.query_one(".field-error", Static).update(f"{WRONG} {self.error}" if self.error else "")

    def _mark(self) -> None:
        """The note behind the control: a word and a glyph, so that it reads without colour."""
        same = self.value == self.recommended
        self.set_class(not self.error and same and bool(self.reason), "-recommended")
        self.set_class(not self.error and not same and self.reason is not None, "-changed")
        if self.error:
            note = f"{WRONG} not valid"
        elif self.reason is None:
            note = ""
        elif same:
            note = f"{RECOMMENDED} recommended" if self.reason else "default"
        else:
            wanted = value_text(self.recommended) or "empty"
            note = f"{CHANGED} yours" + (f", {RECOMMENDED} {wanted}" if len(wanted) <= 12 else "")
        if note != self._note:
            self._note = note
            self.query_one(".field-note", Static).update(note)

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
            why = f"Default: {value_text(self.recommended) or 'empty'}."
        return f"{self.field.help}{takes}\n{why}"


def field_id(path: str) -> str:
    """A widget id for a field path: `datasets[0].num_frames` -> `field-datasets-0-num_frames`."""
    return "field-" + path.replace(".", "-").replace("[", "-").replace("]", "")

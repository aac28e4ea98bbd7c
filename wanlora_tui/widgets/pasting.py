"""Text inputs: which keys they take for text, what of their selection is their user's, and pastes of several lines."""

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.keys import REPLACED_KEYS, key_to_character
from textual.reactive import Reactive
from textual.widgets import Input
from textual.widgets.input import Selection

from wanlora_tui.output.formatting import count


def typed_by(key: str) -> str:
    """The character that the key of this name types, "" if none. Textual's own knows no `slash`, `minus`, `plus`, `at`,
    `underscore` or `backslash`: a footer and a help would list them as keys where they are typed."""
    character = key_to_character(REPLACED_KEYS.get(key, key)) or ""
    return character if character.isprintable() else ""


class TextKeys:
    """What keys mean in a widget that is typed in, of one line or of many. It stands before the widget among the bases
    and is none itself: Textual takes styles from the first base that is one."""

    def check_consume_key(self, key: str, character: str | None = None) -> bool:
        return bool(super().check_consume_key(key, typed_by(key) or None))  # type: ignore[misc]

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Where its user has selected nothing there is nothing to cut, and the key means what it means around this
        widget; Textual would cut the whole line of a text."""
        if action == "cut":
            return bool(chosen_text(self))
        return super().check_action(action, parameters)  # type: ignore[misc]


class OneLine(TextKeys, Input, inherit_bindings=False):
    """Draws only itself at a key. `joiner` stands where a pasted text had its line breaks; None: such a text is
    refused, and that is said."""

    # ^D is left to what is around: Delete does the same
    BINDINGS: ClassVar[list[BindingType]] = [
        *(b for b in Input.BINDINGS if not (isinstance(b, Binding) and b.action == "delete_right")),
        Binding("delete", "delete_right", show=False),
    ]
    joiner: str | None = None
    _arrival: Selection | None = None  # what is selected because the focus has come here
    # Textual lays the whole screen out anew when this changes, at every key; a line of text keeps its place
    virtual_size = Reactive(Size(0, 0), layout=False)

    def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default()
        event.stop()
        lines = [line.strip() for line in event.text.splitlines() if line.strip()]
        if not lines:
            return
        if len(lines) > 1 and self.joiner is None:
            self.notify(
                f"This takes one line, and {len(lines)} were pasted: nothing was taken.", severity="warning", timeout=8
            )
            return
        text = lines[0] if self.joiner is None else self.joiner.join(lines)
        if len(lines) > 1:
            self.notify(f"{count(len(lines), 'line')} pasted, joined into one.")
        if self.selection.is_empty:
            self.insert_text_at_cursor(text)
        else:
            self.replace(text, *self.selection)

    def _on_focus(self, event: events.Focus) -> None:
        """Textual calls Input's own behind it, which selects. A terminal that gets its focus back selects nothing."""
        if self.select_on_focus and not event.from_app_focus:
            self._arrival = Selection(0, len(self.value))
            self.refresh_bindings()

    def watch_selection(self, before: Selection, selection: Selection) -> None:
        could = self._is_users(before)
        if selection != self._arrival:
            self._arrival = None
        if could != self._is_users(selection):
            self.refresh_bindings()

    def action_select_all(self) -> None:
        super().action_select_all()
        self._arrival = None
        self.refresh_bindings()

    @property
    def is_chosen(self) -> bool:
        """Its user has selected what is selected; the focus alone selects all."""
        return self._is_users(self.selection)

    def _is_users(self, selection: Selection) -> bool:
        return not selection.is_empty and selection != self._arrival


def chosen_text(widget: object) -> str:
    """What its user has selected in a widget."""
    if isinstance(widget, OneLine) and not widget.is_chosen:
        return ""
    return str(getattr(widget, "selected_text", ""))

"""The gate for all that is drawn: no text of others acts on the terminal, or is taken for markup.

What is printed passes that of presets.text. Which characters are meant is decided there, by `escaped`.
"""

from collections.abc import Sequence
from typing import Literal

from rich.console import Console
from rich.segment import Segment
from textual.app import App
from textual.color import Color
from textual.filter import LineFilter
from textual.widgets._toast import ToastHolder, ToastRack

from presets.text import escaped

BLANKS = str.maketrans("\t\n", "  ")  # nothing but a jump is left of them in a line that is drawn


class EscapedText(LineFilter):
    """Writes out what a terminal would act on in a line of a widget, whatever widget it is.

    Such characters have no width, so the line was laid out without them: what does not fit is cut off at its end. Where
    that counts, the text is `escaped` before it is laid out.
    """

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """Pictures, which are control sequences themselves, are in segments that say so."""
        text = "".join([text for text, _, control in segments if not control])
        if _shown(text) == text and not any(style and style.link for _, style, _ in segments):
            return segments
        width = Segment.get_line_length(segments)
        return Segment.adjust_line_length(
            [segment if segment.control else _harmless(segment) for segment in segments], width
        )


def _harmless(segment: Segment) -> Segment:
    text, style, _ = segment
    if style and style.link:
        style = style.update_link(escaped(style.link))
    return Segment(_shown(text), style)


def _shown(text: str) -> str:
    return escaped(text).translate(BLANKS)


class SafelyDrawn(App[None]):
    """An app whose screens can show any text."""

    _escaped_text = EscapedText()

    def __init__(self) -> None:
        super().__init__()
        # for what is said of an error when the screens are closed: colours would not pass the gate for what is printed
        self.error_console = Console(color_system=None, markup=False, highlight=False, stderr=True)

    def get_line_filters(self) -> Sequence[LineFilter]:
        return [*super().get_line_filters(), self._escaped_text]

    def notify(
        self,
        message: str,
        *,
        title: str = "",
        severity: Literal["information", "warning", "error"] = "information",
        timeout: float | None = None,
        markup: bool = True,
    ) -> None:
        """Notifications name jobs and files, and quote others: no markup in them counts, asked for or not."""
        super().notify(escaped(message), title=escaped(title), severity=severity, timeout=timeout, markup=False)

    def _refresh_notifications(self) -> None:
        """Of a notice that is taken back before its time Textual leaves an empty holder, which has a line here. And
        each screen has a rack of its own: below a dialog, which shows the notices, they would stand a second time."""
        super()._refresh_notifications()
        self.call_later(self._tidy_racks)

    def _tidy_racks(self) -> None:
        shown = {ToastRack._toast_id(notice) for notice in self._notifications}
        for screen in self.screen_stack[-1:]:
            for holder in screen.query(ToastHolder):
                if holder.id not in shown:
                    holder.remove()
        for screen in self.screen_stack[:-1]:
            screen.query(ToastRack).set(display=False)

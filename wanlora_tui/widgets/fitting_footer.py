"""A footer for screens that stay open: drawn anew only when what it offers has changed, and never cut off at the edge.

Textual's own is made anew whenever bindings are looked at again, which costs more than all else of a screen at rest.
"""

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.events import Resize
from textual.screen import Screen
from textual.widgets import Footer
from textual.widgets._footer import FooterKey

Offered = tuple[str, str, bool]  # id or action of a binding, its label, whether it can be taken now


class FittingFooter(Footer):
    """`spare`: ids of actions that are left out where there is no room for all, the first of them first. They have
    their keys still, and stand in the help and the palette."""

    def __init__(self, *, spare: Sequence[str] = (), show_command_palette: bool = True) -> None:
        super().__init__(show_command_palette=show_command_palette, compact=True)
        self._spare = spare
        self._offered: list[Offered] | None = None
        self._width = 0
        self._drawn: tuple[list[Offered] | None, int] = (None, 0)

    def compose(self) -> ComposeResult:
        keys = [key for key in super().compose() if isinstance(key, FooterKey)]
        ids = {b.binding.action: b.binding.id for b in self.screen.active_bindings.values()}
        room = self._room()
        for spare in self._spare:
            if sum(map(_columns, keys)) <= room:
                break
            keys = [key for key in keys if ids.get(key.action) != spare]
        self.styles.grid_size_columns = len(keys)
        yield from keys

    def bindings_changed(self, screen: Screen[object]) -> None:
        if not screen.app.app_focus or not self.is_attached or screen is not self.screen:
            return
        offered = [
            (b.binding.id or b.binding.action, b.binding.description, b.enabled)
            for b in screen.active_bindings.values()
            if b.binding.show
        ]
        if offered != self._offered or self._width != self._room():
            self._offered, self._width = offered, self._room()
            super().bindings_changed(screen)

    async def recompose(self) -> None:
        """It comes a moment after it was asked for: a dialog may be open by now, whose keys these are not, or the
        screen may be gone."""
        if not self.is_attached:
            return
        if self.screen.is_current:
            if self._drawn != (self._offered, self._width):  # asked for twice, it is drawn once
                self._drawn = self._offered, self._width
                await super().recompose()
        else:
            self._offered = None  # looked up again when the screen is back

    def on_resize(self, event: Resize) -> None:
        if self._offered is not None and event.size.width != self._width:
            self.bindings_changed(self.screen)

    def _room(self) -> int:
        return self.size.width or self.screen.size.width


def _columns(key: FooterKey) -> int:
    """A key, a blank and a label, and a blank between two, as the compact footer has them."""
    return len(key.key_display) + len(key.description) + 2

"""How seldom a screen that is typed in is drawn. How little of it, is wanlora_tui.terminal.sparing_compositor's.

Textual draws as soon as anything has changed, and again when the messages of the same key have changed more.
"""

import time
from functools import partial
from typing import Any

from textual.reactive import Reactive
from textual.widget import Widget

from wanlora_tui.terminal.sparing_compositor import SparingCompositor
from wanlora_tui.widgets.key_order import KeysInOrder
from wanlora_tui.widgets.redraw_throttle import DrawnBelow

HELD = 0.05  # seconds that what has changed waits for the end of a key, or of keys typed ahead


class SparingScreen(DrawnBelow[Any]):
    """A screen that is typed in: of what a key sets off one picture is drawn, once all of it is there."""

    # who loses the focus and who gets it draw themselves; Textual would draw all of the screen anew
    focused: Reactive[Widget | None] = Reactive(None, repaint=False)

    def __init__(self) -> None:
        super().__init__()
        self._compositor = SparingCompositor()
        self._held_since: float | None = None

    def draw(self) -> None:
        """Lay out and draw what is there by now, ahead of the rest of what a key sets off."""
        self._layout_required = True
        super()._on_timer_update()

    def _on_timer_update(self) -> None:
        app = self.app
        if isinstance(app, KeysInOrder) and app.is_taking and self.is_current:
            now = time.monotonic()
            if self._held_since is None:
                self._held_since = now
                app.afterwards(partial(self.call_later, self._on_timer_update))
            if now - self._held_since < HELD:
                return  # the timer that has called this goes on
        self._held_since = None
        super()._on_timer_update()

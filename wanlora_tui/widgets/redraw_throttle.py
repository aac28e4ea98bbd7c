"""Drawing no more often than eyes and slow lines can follow, however fast the news comes; dialogs, with their
answers."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from textual import events
from textual.containers import Horizontal
from textual.geometry import Size
from textual.layout import ArrangeResult, Layout
from textual.layouts.horizontal import HorizontalLayout
from textual.layouts.vertical import VerticalLayout
from textual.message import Message
from textual.message_pump import MessagePump
from textual.reactive import Reactive
from textual.screen import ModalScreen, Screen, ScreenResultType
from textual.widget import Widget

from wanlora_tui.terminal.sparing_compositor import SparingCompositor
from wanlora_tui.widgets.key_order import KeysInOrder

SECONDS = 0.2  # between two drawings
HELD = 0.05  # seconds that what has changed waits for the end of a key, or of keys typed ahead
OPENS = 0.1  # seconds after which a dialog is drawn, also when what has opened it still goes on


class Changed(Message):
    """What a screen shows has changed; many of them are one."""

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, Changed)


def is_seen(screen: Screen[Any]) -> bool:
    """Whether a screen is in view: with nothing but dialogs over it. One that is not must get no messages: Textual
    draws the screen above it anew after each, because that could be transparent."""
    stack = screen.app.screen_stack
    return screen in stack and all(isinstance(s, ModalScreen) for s in stack[stack.index(screen) + 1 :])


class DrawnBelow(Screen[ScreenResultType]):
    """A screen that dialogs lie over. Textual would draw all of it again after each of its messages once something in
    it has changed under a dialog."""

    def _compositor_refresh(self) -> None:
        super()._compositor_refresh()
        if self is not self.app.screen:
            self._repaint_required = False  # what has changed is drawn by the dialog

    def set_focus(self, widget: Widget | None, scroll_visible: bool = True, from_app_focus: bool = False) -> None:
        """What has been removed does not get it: keys would go to nobody."""
        if widget is None or widget.is_attached:
            super().set_focus(widget, scroll_visible, from_app_focus)


class SparingScreen(DrawnBelow[ScreenResultType]):
    """Of what a key sets off one picture is drawn, once all of it is there.

    Textual draws as soon as anything has changed, and again when the messages of the same key have changed more. How
    little is drawn, is wanlora_tui.terminal.sparing_compositor's.
    """

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


class Dialog(ModalScreen[ScreenResultType], DrawnBelow[ScreenResultType]):
    """A dialog that opens in one frame, once the key that opened it has done all that it sets off.

    Textual draws a new one when it is resumed, when it hears of its size, when it is styled and when what lost the
    focus below it has changed, and each time all that is below it, dimmed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._opening = True

    def on_screen_resume(self, event: events.ScreenResume) -> None:
        """Textual looks up the styles of all of it again; of what was made a moment ago they are as they were."""
        if self._opening:
            event.refresh_styles = False
            self.set_timer(OPENS, self._draw_first)
            if isinstance(self.app, KeysInOrder) and self.app.is_taking:
                self.app.afterwards(self._draw_first)

    def _compositor_refresh(self) -> None:
        if not self._opening:
            super()._compositor_refresh()

    def _draw_first(self) -> None:
        if not (self._opening and self.is_attached and self.is_current):
            return
        for below in self.app._background_screens:
            below._on_timer_update()  # what has changed there is in this frame
        if self._layout_required:
            self._refresh_layout()
            self._layout_required = False
        self._opening = False
        self.refresh()
        self._on_timer_update()


class _BesideOrBelow(HorizontalLayout):
    def arrange(self, parent: Widget, children: list[Widget], size: Size, greedy: bool = True) -> ArrangeResult:
        placed = super().arrange(parent, children, size, greedy)
        if all(each.region.right <= size.width for each in placed):
            return placed
        return VerticalLayout().arrange(parent, children, size, greedy)


class Answers(Horizontal):
    """The buttons of a dialog: beside each other, and below each other where one would be cut."""

    DEFAULT_CSS = "Answers { height: auto; }"

    @property
    def layout(self) -> Layout:
        return _BesideOrBelow()


class Rest:
    """Calls once nobody has asked for it for some seconds. A timer of Textual's is a task, which to stop and to start
    anew at each key costs as much as a row of a form."""

    def __init__(self, owner: MessagePump, call: Callable[[], None], seconds: float) -> None:
        self._owner, self._call, self.seconds = owner, call, seconds
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_waited_for(self) -> bool:
        return self._timer is not None

    def ask(self) -> None:
        self.cancel()
        self._timer = asyncio.get_running_loop().call_later(self.seconds, self._owner.call_later, self.now)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def now(self) -> None:
        """Call at once, if it was asked for."""
        if self._timer is not None:
            self.cancel()
            self._call()


class Throttle:
    """`ask` draws at once after a quiet time, else once at the end of the current interval: the last state is always
    drawn."""

    def __init__(self, owner: MessagePump, draw: Callable[[], None]) -> None:
        self._owner, self._draw = owner, draw
        self._drawn_at = 0.0
        self._waiting: asyncio.TimerHandle | None = None

    def ask(self, seconds: float = SECONDS) -> None:
        """`seconds`: the interval, since the last drawing. One that waits for a shorter one is not put off."""
        loop = asyncio.get_running_loop()
        wait = max(0.0, self._drawn_at + seconds - time.monotonic())
        if self._waiting is not None:
            if self._waiting.when() <= loop.time() + wait:
                return
            self._waiting.cancel()
        if wait:
            # a timer of Textual's whose time has passed before it began to wait never rings
            self._waiting = loop.call_later(wait, self._owner.call_later, self._now)
        else:
            self._now()

    def _now(self) -> None:
        self._waiting = None
        self._draw()
        self._drawn_at = time.monotonic()  # after the drawing: a slow one leaves as much time for keys

"""Drawing no more often than eyes and slow lines can follow, however fast the news comes."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from textual.message import Message
from textual.message_pump import MessagePump
from textual.screen import ModalScreen, Screen

SECONDS = 0.2  # between two drawings


class Changed(Message):
    """What a screen shows has changed; many of them are one."""

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, Changed)


def is_seen(screen: Screen[Any]) -> bool:
    """Whether a screen is in view: with nothing but dialogs over it. One that is not must get no messages: Textual
    draws the screen above it anew after each, because that could be transparent."""
    stack = screen.app.screen_stack
    return screen in stack and all(isinstance(s, ModalScreen) for s in stack[stack.index(screen) + 1 :])


class Throttle:
    """`ask` draws at once after a quiet time, else once at the end of the current interval: the last state is always
    drawn."""

    def __init__(self, owner: MessagePump, draw: Callable[[], None], seconds: float = SECONDS) -> None:
        self._owner, self._draw, self._seconds = owner, draw, seconds
        self._drawn_at, self._waiting = 0.0, False

    def ask(self) -> None:
        if self._waiting:
            return
        wait = self._drawn_at + self._seconds - time.monotonic()
        if wait <= 0:
            self._now()
        else:
            self._waiting = True
            # a timer of Textual's whose time has passed before it began to wait never rings
            asyncio.get_running_loop().call_later(wait, self._owner.call_later, self._now)

    def _now(self) -> None:
        self._waiting = False
        self._draw()
        self._drawn_at = time.monotonic()  # after the drawing: a slow one leaves as much time for keys

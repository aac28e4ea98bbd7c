"""Drawing no more often than eyes and slow lines can follow, however fast the news comes."""

import time
from collections.abc import Callable

from textual.message import Message
from textual.message_pump import MessagePump

SECONDS = 0.2  # between two drawings


class Changed(Message):
    """What a screen shows has changed; many of them are one."""

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, Changed)


class Throttle:
    """`ask` draws at once after a quiet time, else once at the end of the current interval: the last state is always
    drawn."""

    def __init__(self, owner: MessagePump, draw: Callable[[], None]) -> None:
        self._owner, self._draw = owner, draw
        self._drawn_at, self._waiting = 0.0, False

    def ask(self) -> None:
        if self._waiting:
            return
        wait = self._drawn_at + SECONDS - time.monotonic()
        if wait <= 0:
            self._now()
        else:
            self._waiting = True
            self._owner.set_timer(wait, self._now)

    def _now(self) -> None:
        self._waiting = False
        self._draw()
        self._drawn_at = time.monotonic()  # after the drawing: a slow one leaves as much time for keys

"""A channel that is opened anew when it is cut, for as long as there is hope."""

import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from presets.errors import UserError
from wanlora_tui.transfer.messages import Cut

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0)  # seconds before each new attempt


class Channel(Protocol):
    def close(self) -> None: ...


C = TypeVar("C", bound=Channel, covariant=True)
T = TypeVar("T")


class LostConnection(UserError):
    """The line was cut and did not come back; what came stays, and the next attempt goes on from there."""


class Retrying(Generic[C]):
    """`connect` opens a channel, or raises Cut. `say` gets a line about each cut."""

    def __init__(
        self,
        connect: Callable[[], C],
        say: Callable[[str], None],
        *,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._connect, self._say, self._sleep = connect, say, sleep
        self._channel: C | None = None
        self._failures = 0  # since something moved last

    def ask(self, question: Callable[[C], T]) -> T:
        """Ask, again over a new channel when it is cut; so a question must know what was done already. Raises
        LostConnection."""
        while True:
            try:
                if self._channel is None:
                    self._channel = self._connect()
                return question(self._channel)
            except Cut as e:
                self.close()
                if self._failures == len(PAUSES):
                    raise LostConnection(
                        f"the connection is lost: {e}", fix="What came is kept, and the same command goes on"
                    ) from None
                self._say(f"The connection was cut ({e}); trying again ...")
                self._sleep(PAUSES[self._failures])
                self._failures += 1

    def moves(self) -> None:
        """Something has come through."""
        self._failures = 0

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

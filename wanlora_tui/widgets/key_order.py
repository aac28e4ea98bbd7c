"""Keys typed ahead take effect in the order in which they were typed.

Textual hands a key to the focused widget; what that does not consume bubbles up, and only then its binding is looked
up. Keys that come faster than that overtake it: the letters typed after Tab reach the field that Tab was about to
leave, and those typed after Backspace are there before it deletes. Here the next key is held back until the one before
it is done.
"""

import asyncio
from collections import deque
from dataclasses import dataclass

from textual import events, on
from textual.app import App
from textual.message import Message
from textual.message_pump import MessagePump

PATIENCE = 5.0  # seconds for a widget that hangs
LOOK = 0.1  # seconds between two looks at the widget: one that has been removed never says that it is done


class KeysInOrder(App[None]):
    """An app that takes one key or paste at a time. `patience`: seconds for one.

    They are counted in looks, so that a loop that is held up, on a busy machine, does not count as a widget that hangs.
    """

    patience = PATIENCE

    @dataclass
    class Done(Message):
        """Follows an input from the focused widget up to the app: whatever the input was to do there has been done."""

        input: events.Event

    def __init__(self) -> None:
        super().__init__()
        self._under_way: events.Event | None = None
        self._held = deque[events.Event]()
        self._patience: asyncio.TimerHandle | None = None

    async def on_event(self, event: events.Event) -> None:
        if not isinstance(event, events.Key | events.Paste):
            await super().on_event(event)
        elif event.is_forwarded:  # bubbled up here, where its binding is looked up
            await super().on_event(event)
            await self._finish(event)
        elif self._under_way is not None:
            self._held.append(event)
        else:
            await self._take(event)

    async def _take(self, event: events.Event) -> None:
        target = self.focused or self.screen
        await super().on_event(event)
        if event.is_forwarded and target.post_message(self.Done(event)):
            self._under_way = event
            self._look_again(event, target, int(self.patience / LOOK))

    def _look_again(self, event: events.Event, target: MessagePump, looks: int) -> None:
        """Wait for the widget as long as it is there, for so many looks."""

        def look() -> None:
            if looks > 1 and target.is_running and target.is_attached:
                self._look_again(event, target, looks - 1)
            else:
                self.post_message(self.Done(event))

        self._patience = asyncio.get_running_loop().call_later(LOOK, look)

    async def _finish(self, event: events.Event) -> None:
        if event is not self._under_way:  # it was done already, when it had bubbled up
            return
        assert self._patience is not None
        self._patience.cancel()
        self._under_way = None
        while self._held and self._under_way is None:
            await self._take(self._held.popleft())

    @on(Done)
    async def _done(self, event: Done) -> None:
        event.stop()
        await self._finish(event.input)

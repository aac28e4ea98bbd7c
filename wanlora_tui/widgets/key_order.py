"""Keys typed ahead take effect in the order in which they were typed, and with clicks in the order in which they came.

Textual hands a key to the focused widget; what that does not consume bubbles up, and only then its binding is looked
up. Keys that come faster than that overtake it: the letters typed after Tab reach the field that Tab was about to
leave, and those typed after Backspace are there before it deletes. A click overtakes them all: it moves the focus at
once. Here the next key or click is held back until the one before it is done, with what it has set off: messages that
open a form, or move the focus into it. A screen that opens is waited for too, but not by who wants to leave.

Mostly all who may have something to do with a key are at rest after some turns of the loop. Only else, and for a click,
a message follows it, from the focused widget up to the app: one for each of them, which costs more than all that a
letter does.

Nor does a key wait while the garbage collector looks at all that has lived for a while, whoever makes something new:
that takes up to a fifth of a second, and comes once no more keys do.
"""

import asyncio
import gc
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from textual import events, on
from textual._queue import Queue
from textual.dom import DOMNode
from textual.message import Message
from textual.message_pump import MessagePump

from wanlora_tui.styled_once import StyledOnce
from wanlora_tui.terminal.drawn_text import SafelyDrawn

PATIENCE = 5.0  # seconds for a widget that hangs
LOOK = 0.1  # seconds between two looks at the widget: one that has been removed never says that it is done
TURNS = 150  # of the loop, in which most keys are done with all that they set off
CALM = 4  # turns without anything to do: a worker that a key has started may open a dialog in the second
# Times that one key is followed from the focused widget up to the app. What a message sets off waits one round later.
ROUNDS = 12
IDLE = 2.0  # seconds without a key before the collector may look at what has lived for a while
NEVER = 1_000_000_000  # a threshold of the collector


@runtime_checkable
class Opening(Protocol):
    """A screen that has nothing to type into for a moment after it was opened."""

    @property
    def takes_keys(self) -> bool: ...


def _rests(pump: MessagePump) -> bool:
    """It has handled all that it was sent, and waits for more."""
    queue: Queue[Message | None] = pump._message_queue
    return bool(queue.ready_event._waiters) and not queue.values and pump._pending_message is None


class KeysInOrder(StyledOnce, SafelyDrawn):
    """An app that takes one key, paste or mouse button at a time. `patience`: seconds for one.

    They are counted in looks, so that a loop that is held up, on a busy machine, does not count as a widget that hangs.
    """

    patience = PATIENCE

    @dataclass
    class Done(Message):
        """Follows an input from the focused widget up to the app: whatever the input was to do there has been done."""

        input: events.Event

    @dataclass
    class Opened(Message):
        """The screen that an input is for is there, or it is not waited for any longer."""

        input: events.Event

    def __init__(self) -> None:
        super().__init__()
        self.taken_at = float("-inf")  # when the last key was, monotonic
        self._under_way: events.Event | None = None
        self._followed: MessagePump = self  # the widget that the last `Done` set out from
        self._concerned: list[DOMNode] = []  # all from there up to the app
        self._opening: object = None  # the screen that keys wait for, or did in vain
        self._opening_looks = 0  # at that screen, left for all keys together
        self._awaits_screen = False  # what is under way has not been handed on yet
        self._rounds = self._looks = self._turns = self._calm = 0
        self._held = deque[events.Event]()
        self._patience: asyncio.TimerHandle | None = None
        self._afterwards: list[Callable[[], object]] = []
        self._thresholds: tuple[int, int, int] | None = None  # of the collector, while it is put off
        self._may_collect: asyncio.TimerHandle | None = None

    @property
    def is_taking(self) -> bool:
        """A key is under way, with what it sets off."""
        return self._under_way is not None

    def afterwards(self, call: Callable[[], object]) -> None:
        """Call this once no key is under way."""
        self._afterwards.append(call)

    async def on_event(self, event: events.Event) -> None:
        if not isinstance(event, events.Key | events.Paste | events.MouseEvent) or event.is_forwarded:
            await super().on_event(event)  # a forwarded one has bubbled up here, where its binding is looked up
        elif self._under_way is not None:
            self._held.append(event)
            await self._hurry()
        else:
            await self._take(event)

    async def _take(self, event: events.Event) -> None:
        if isinstance(event, events.MouseEvent) and not isinstance(event, events.MouseDown | events.MouseUp):
            await super().on_event(event)  # no key is meant for what movements and the wheel set off
            return
        self._under_way, self._rounds, self._looks = event, 0, int(self.patience / LOOK)
        self._turns = self._calm = 0
        self._concerned = []
        self.taken_at = time.monotonic()
        self._put_off_collector()
        if isinstance(event, events.Key | events.Paste) and self._still_opens() and not self._is_urgent(event):
            self._await_screen(event)
            await self._hurry()
        else:
            await self._hand_on(event)

    def _put_off_collector(self) -> None:
        if self._may_collect is not None:
            self._may_collect.cancel()
        if self._thresholds is None:
            self._thresholds = gc.get_threshold()
            gc.set_threshold(*self._thresholds[:2], NEVER)
        self._may_collect = asyncio.get_running_loop().call_later(IDLE, self._give_collector_back)

    def _give_collector_back(self) -> None:
        """From here on it looks at what has lived for a while when it is due."""
        if self._may_collect is not None:
            self._may_collect.cancel()
        if self._thresholds is not None:
            gc.set_threshold(*self._thresholds)
        self._may_collect = self._thresholds = None

    def on_unmount(self) -> None:
        self._give_collector_back()

    def _still_opens(self) -> bool:
        """Whether the screen is to be waited for: once, however many keys come."""
        if not isinstance(self.screen, Opening) or self.screen.takes_keys:
            self._opening = None
        elif self._opening is not self.screen:
            self._opening, self._opening_looks = self.screen, int(self.patience / LOOK)
        return self._opening is not None and self._opening_looks > 0

    def _is_urgent(self, event: events.Event) -> bool:
        """A key that means the same however much of the screen is there. The palette takes what is typed behind it."""
        return isinstance(event, events.Key) and (
            event.key == "escape"
            or any(
                b.priority and b.action != "command_palette" for b in self._bindings.key_to_bindings.get(event.key, ())
            )
        )

    async def _hurry(self) -> None:
        """Hand on what does not wait for a screen. Who leaves it wants nothing of what was typed before."""
        for event in [event for event in self._held if self._is_urgent(event)]:
            if not self._awaits_screen or not self.screen_stack:
                return
            if isinstance(event, events.Key) and event.key == "escape":
                while self._held.popleft() is not event:
                    pass
                await self._take(event)
            else:
                self._held.remove(event)
                await super().on_event(event)

    def _await_screen(self, event: events.Event) -> None:
        self._awaits_screen = True
        self._opening_looks -= 1
        asyncio.get_running_loop().call_later(LOOK, self.post_message, self.Opened(event))

    @on(Opened)
    async def _opened(self, event: Opened) -> None:
        event.stop()
        if event.input is not self._under_way or not self.screen_stack:  # it closes
            return
        if self._still_opens():
            self._await_screen(event.input)
        else:
            await self._hand_on(event.input)

    async def _hand_on(self, event: events.Event) -> None:
        self._awaits_screen = False
        target = self.focused or self.screen
        if isinstance(event, events.MouseEvent) and self.screen._layout_required:
            # it is meant for what stands there by now: of what was drawn last a key may have removed all
            self.screen._layout_required = False
            self.screen._refresh_layout()
        await super().on_event(event)
        if isinstance(event, events.MouseEvent):
            self._follow(event, self._mouse_down_widget or self.screen)
        else:
            self._turn(event, target if event.is_forwarded else self.focused or self.screen)

    def _turn(self, event: events.Event, target: DOMNode) -> None:
        """Look at each turn of the loop whether the key is done: all from the focused widget up to the app are at rest,
        and stay so."""
        if event is not self._under_way or not self.screen_stack:
            return
        here: DOMNode = self.focused or self.screen
        if here is not self._followed or not self._concerned:
            self._followed, self._concerned = here, [*here.ancestors_with_self]
            if target is not here and target.is_attached:
                self._concerned += target.ancestors_with_self
        self._turns += 1
        self._calm = self._calm + 1 if all(map(_rests, self._concerned)) else 0
        if self._calm == CALM:
            self.post_message(self.Done(event))
        elif self._turns < TURNS:
            asyncio.get_running_loop().call_soon(self._turn, event, target)
        else:
            self._follow(event, target)

    def _follow(self, event: events.Event, target: MessagePump) -> None:
        """Send a `Done` after what was posted to the target, and wait for it as long as the target is there."""
        self._followed = target
        self._rounds += 1
        if target.post_message(self.Done(event)):
            self._look_again(event)
        else:
            self.post_message(self.Done(event))

    def _look_again(self, event: events.Event) -> None:
        def look() -> None:
            self._looks -= 1
            if self._looks > 0 and self._followed.is_running and self._followed.is_attached:
                self._look_again(event)
            else:
                self.post_message(self.Done(event))

        if self._patience is not None:
            self._patience.cancel()
        self._patience = asyncio.get_running_loop().call_later(LOOK, look)

    @on(Done)
    async def _done(self, event: Done) -> None:
        event.stop()
        await asyncio.sleep(0)  # a worker that the input has started opens its dialog
        if event.input is not self._under_way or not self.screen_stack:  # it closes
            return
        target = self.focused or self.screen
        quiet = target is self._followed and not any(
            node.message_queue_size for node in target.ancestors_with_self if node is not self
        )
        if isinstance(event.input, events.MouseEvent) and self._rounds == 1:
            quiet = False  # what a button sets off when it is pressed goes up right behind this
        if not quiet and self._rounds < ROUNDS and self._looks > 0:
            self._follow(event.input, target)
            return
        if self._patience is not None:
            self._patience.cancel()
        self._under_way = self._patience = None
        while self._held and self._under_way is None:
            await self._take(self._held.popleft())
        if self._under_way is None:
            calls, self._afterwards = self._afterwards, []
            for call in calls:
                call()

"""Pilots wait until the app has nothing to do, however long that takes, and what it notifies stays. Style sheets are
parsed once for all apps."""

import asyncio
from time import process_time
from typing import Any

import pytest
import textual.app
import textual.pilot
from textual._compositor import Compositor, visible_screen_stack
from textual.css.model import RuleSet
from textual.css.stylesheet import Stylesheet
from textual.geometry import Size
from textual.message_pump import MessagePump
from textual.notifications import Notification, Notifications
from textual.screen import Screen
from textual.strip import Strip

from tests.helpers.interface.wizard_pilot import NOTIFIED
from tests.helpers.waiting import LOOK, PATIENCE

_parse = Stylesheet._parse_rules
_parsed: dict[tuple[object, ...], list[RuleSet]] = {}


def parse_once(
    sheet: Stylesheet, css: str, read_from: Any, is_default_rules: bool = False, tie_breaker: int = 0, scope: str = ""
) -> list[RuleSet]:
    """The rules of a text of CSS with a theme's colours, which do not change: parsing took a seventh of each app's
    start."""
    key = (css, read_from, is_default_rules, tie_breaker, scope, *sheet._variables.items())
    if key not in _parsed:
        _parsed[key] = _parse(sheet, css, read_from, is_default_rules, tie_breaker, scope)
    return _parsed[key]


Stylesheet._parse_rules = parse_once  # type: ignore[method-assign]

AT_MOST = 0.5  # seconds of computing: an app that follows a run in full swing is never without something to do


async def nothing_to_do(min_sleep: float = 0, max_sleep: float = 1) -> None:
    """What was due within one look has been done, and all that came of it: every task waits for a timer, a socket or a
    thread.

    Textual's `wait_for_idle`, which this stands in for, takes a process that gets no CPU for idle, and gives up after a
    second by the clock.
    """
    await asyncio.sleep(LOOK)
    ready, began = asyncio.get_running_loop()._ready, process_time()  # type: ignore[attr-defined]
    while ready and process_time() < began + AT_MOST:
        await asyncio.sleep(0)


def is_idle(pump: MessagePump) -> bool:
    """It has done all that it was sent, and waits for more."""
    queue: Any = pump._message_queue
    return bool(queue.empty() and queue.ready_event._waiters)


async def all_taken(pilot: textual.pilot.Pilot[Any]) -> bool:
    """Every widget of the screen has taken what it had been sent before; False where the app has died.

    Textual's `_wait_for_screen`, which this stands in for, sends all of them one more message, and waits until they
    have taken that. Here only those get it that have something to do.
    """
    app = pilot.app
    if not app.screen_stack:
        return False
    behind = [pump for pump in (app, *app.screen.walk_children(with_self=True)) if not is_idle(pump)]
    taken = [event for pump in behind if pump.call_later((event := asyncio.Event()).set)]
    if taken:
        waits = [asyncio.gather(*(event.wait() for event in taken)), asyncio.create_task(app._exception_event.wait())]
        ended, _ = await asyncio.wait(waits, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        assert ended, f"{sum(not event.is_set() for event in taken)} widgets of the screen do not take their messages"
    return all(event.is_set() for event in taken)


@pytest.fixture(autouse=True)
def patient_pilots(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (textual.app, textual.pilot):
        monkeypatch.setattr(module, "wait_for_idle", nothing_to_do)
    monkeypatch.setattr(textual.pilot.Pilot, "_wait_for_screen", all_taken)


@pytest.fixture(autouse=True)
def lasting_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notification goes after some seconds by the clock: on a busy machine before it was drawn, or between two looks.
    Here it goes with the next key, and all are kept for what is said of a failure."""
    press, add = textual.pilot.Pilot.press, Notifications.add

    async def press_on(pilot: textual.pilot.Pilot[Any], *keys: str) -> None:
        pilot.app.clear_notifications()
        await press(pilot, *keys)

    def add_and_keep(notifications: Notifications, notification: Notification) -> Notifications:
        NOTIFIED.setdefault(notifications, []).append(notification)
        return add(notifications, notification)

    monkeypatch.setattr(Notification, "time_left", property(lambda self: self.timeout * PATIENCE))
    monkeypatch.setattr(Notifications, "add", add_and_keep)
    monkeypatch.setattr(textual.pilot.Pilot, "press", press_on)


@pytest.fixture
def drawn_when_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """An app without a terminal throws away all that it draws, which takes a third of a test's time. Here it draws
    nothing between two looks, and a look (at the text of the screen, for a picture) draws all of it. For tests that
    look; those of drawing itself do without."""
    render_update, render_strips = Compositor.render_update, Compositor.render_strips

    def look(compositor: Compositor, size: Size | None = None) -> list[Strip]:
        screen: Any = compositor.root  # none yet where a screen has just been made
        if screen is not None and screen.is_current:  # over those that lie below
            visible_screen_stack.set(screen.app._background_screens)
        return render_strips(compositor, size)

    def nothing(
        compositor: Compositor,
        full: bool = False,
        screen_stack: list[Screen[Any]] | None = None,
        simplify: bool = False,
    ) -> Any:
        if full:  # a picture
            return render_update(compositor, full, screen_stack, simplify)
        visible_screen_stack.set(screen_stack or [])
        compositor._dirty_regions.clear()
        return None

    monkeypatch.setattr(Compositor, "render_strips", look)
    monkeypatch.setattr(Compositor, "render_update", nothing)

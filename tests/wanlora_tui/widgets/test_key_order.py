"""Keys that come faster than they can be taken."""

import asyncio
import gc
import time

import pytest
from textual import events, work
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Button, Input, Static

from tests.helpers.interface.wizard_pilot import type_ahead, until
from tests.helpers.waiting import PATIENCE, until_async
from wanlora_tui.widgets import key_order
from wanlora_tui.widgets.key_order import IDLE, LOOK, NEVER, TURNS, KeysInOrder


class Stuck(Input):
    """Takes a key and is not done with it before it is let go."""

    go = asyncio.Event()

    async def on_key(self, event: events.Key) -> None:
        event.stop()
        await self.go.wait()


class Slow(Input):
    """Takes its time for a key, and holds up the whole app again and again meanwhile, as on a busy machine."""

    async def on_key(self, event: events.Key) -> None:
        for _ in range(4):
            time.sleep(2 * LOOK)
            await asyncio.sleep(0)


class Form(KeysInOrder):
    BINDINGS = [Binding("f2", "note", priority=True), ("f3", "drop")]  # noqa: RUF012  (Textual's own declaration)

    def __init__(self, *inputs: Input) -> None:
        super().__init__()
        self.inputs, self.noted = inputs, 0

    def compose(self) -> ComposeResult:
        yield from self.inputs

    def action_note(self) -> None:
        self.noted += 1

    async def action_drop(self) -> None:
        assert self.focused is not None
        await self.focused.remove()


class Followed(Input):
    """Counts the messages that follow a key."""

    followed = 0

    def on_keys_in_order_done(self) -> None:
        self.followed += 1


async def test_a_letter_is_followed_by_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    field = Followed()
    app = Form(field)
    async with app.run_test() as pilot:
        monkeypatch.setattr(key_order, "TURNS", TURNS)
        type_ahead(app, "abc")
        await until(pilot, lambda: field.value == "abc" and not app.is_taking, "the letters")
        assert not field.followed
        monkeypatch.setattr(key_order, "TURNS", 0)
        type_ahead(app, "d")
        await until(pilot, lambda: field.value == "abcd" and not app.is_taking, "the letter")
        assert field.followed


@pytest.fixture(params=["by turns", "by messages"], autouse=True)
def followed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of both ways to find out that a key is done must do for all of them."""
    if request.param == "by messages":
        monkeypatch.setattr(key_order, "TURNS", 0)


async def test_a_paste_waits_for_the_keys_before_it() -> None:
    app = Form(Input(), Input())
    async with app.run_test() as pilot:
        app.patience = PATIENCE  # a busy machine may take longer for a key than a user should wait
        type_ahead(app, "def", "tab")
        app.post_message(events.Paste("a path"))
        type_ahead(app, "!")
        await until(pilot, lambda: app.inputs[1].value, "the paste")
        await until(pilot, lambda: [i.value for i in app.inputs] == ["def", "a path!"], "all of it, each in its field")


async def test_keys_go_on_when_the_field_they_were_typed_into_goes_away() -> None:
    app = Form(Input(), Input())
    async with app.run_test() as pilot:
        app.post_message(events.Key("a", "a"))
        app.post_message(events.Key("f3", None))
        app.post_message(events.Key("b", "b"))
        await until(pilot, lambda: app.inputs[1].value == "b", "the key behind")
        assert not app.inputs[0].is_attached


async def test_an_app_that_is_held_up_still_takes_keys_in_order() -> None:
    app = Form(Slow(), Input())
    async with app.run_test() as pilot:
        app.patience = 5 * LOOK  # less than the key takes
        type_ahead(app, "tab", "x")
        await until(pilot, lambda: app.inputs[0].value + app.inputs[1].value, "the letter")
        assert app.inputs[1].value == "x"


async def test_a_field_that_hangs_does_not_hold_the_keyboard() -> None:
    app = Form(Stuck())
    async with app.run_test() as pilot:
        app.post_message(events.Key("a", "a"))
        app.post_message(events.Key("f2", None))
        try:
            await until_async(lambda: app.noted, "the key behind")
            assert app.noted == 1
        finally:
            Stuck.go.set()
        await pilot.pause()


class Late(Screen[None]):
    """It has its field a while after it was opened."""

    BINDINGS = [("escape", "dismiss")]  # noqa: RUF012  (Textual's own declaration)
    takes_keys = False

    async def add(self) -> None:
        await self.mount(Input())
        self.query_one(Input).focus()
        self.takes_keys = True


class Opens(KeysInOrder):
    BINDINGS = [("n", "open"), ("d", "note"), Binding("f2", "call", priority=True)]  # noqa: RUF012
    noted = called = waits = 0

    @work
    async def action_open(self) -> None:
        await self.push_screen_wait(Late())

    def action_note(self) -> None:
        self.noted += 1

    def action_call(self) -> None:
        self.called += 1

    def _await_screen(self, event: events.Event) -> None:
        self.waits += 1
        super()._await_screen(event)


async def test_what_is_typed_while_a_screen_opens_is_typed_into_it() -> None:
    """And not into the screen below, nor lost."""
    app = Opens()
    async with app.run_test() as pilot:
        app.patience = PATIENCE
        type_ahead(app, "ndemo")
        await until(pilot, lambda: isinstance(app.screen, Late) and app.is_taking, "a letter that waits")
        await pilot.pause()
        assert isinstance(app.screen, Late)
        await app.screen.add()
        await until(pilot, lambda: app.screen.query_one(Input).value == "demo", "the letters")
        assert not app.noted


async def test_a_screen_that_never_opens_does_not_hold_the_keyboard() -> None:
    app = Opens()
    async with app.run_test() as pilot:
        app.patience = 2 * LOOK
        type_ahead(app, "nd")
        await until(pilot, lambda: app.noted, "the key")


async def test_the_keys_for_a_screen_that_never_opens_share_one_patience() -> None:
    app = Opens()
    async with app.run_test() as pilot:
        app.patience = 2 * LOOK
        type_ahead(app, "nddd")
        await until(pilot, lambda: app.noted == 3, "all keys")
        assert app.waits == 2


async def test_a_screen_that_never_opens_is_left_at_once_and_what_was_typed_into_it_is_dropped() -> None:
    app = Opens()
    async with app.run_test() as pilot:
        app.patience = PATIENCE
        type_ahead(app, "n")
        await until(pilot, lambda: isinstance(app.screen, Late) and not app.is_taking, "the screen")
        type_ahead(app, "ddd")
        await until(pilot, lambda: app.is_taking, "a letter that waits")
        app.post_message(events.Key("escape", None))
        type_ahead(app, "d")
        await until(pilot, lambda: app.noted, "the letter behind")
        assert not isinstance(app.screen, Late) and app.noted == 1


async def test_escape_typed_before_the_screen_is_there_leaves_it_too() -> None:
    app = Opens()
    async with app.run_test() as pilot:
        app.patience = PATIENCE
        type_ahead(app, "nd")
        app.post_message(events.Key("escape", None))
        type_ahead(app, "d")
        await until(pilot, lambda: app.noted, "the letter behind")
        assert not isinstance(app.screen, Late) and app.noted == 1


async def test_the_keys_of_the_app_do_not_wait_for_a_screen_and_letters_before_them_still_do() -> None:
    app = Opens()
    async with app.run_test() as pilot:
        app.patience = PATIENCE
        type_ahead(app, "ndemo")
        app.post_message(events.Key("f2", None))
        await until(pilot, lambda: app.called, "the app's key")
        assert isinstance(app.screen, Late) and app.is_taking
        await app.screen.add()
        await until(pilot, lambda: app.screen.query_one(Input).value == "demo", "the letters")
        assert app.called == 1 and not app.noted


def click_ahead(app: App[None], widget: Widget) -> None:
    """As the terminal tells it: the button goes down and up."""
    x, y = widget.region.x + 2, widget.region.y + 1
    for kind in (events.MouseDown, events.MouseUp):
        app.post_message(kind(None, x, y, 0, 0, 1, False, False, False, screen_x=x, screen_y=y))


class Buttons(Opens):
    def compose(self) -> ComposeResult:
        yield Input()
        yield Button("Open")

    def on_button_pressed(self) -> None:
        self.typed = self.query_one(Input).value
        self.action_open()


async def test_a_click_waits_for_the_letters_before_it_and_those_behind_it_for_what_it_opens() -> None:
    app = Buttons()
    async with app.run_test() as pilot:
        app.patience = PATIENCE
        type_ahead(app, "before")
        click_ahead(app, app.query_one(Button))
        type_ahead(app, "demo")
        await until(pilot, lambda: isinstance(app.screen, Late) and app.is_taking, "a letter that waits")
        assert isinstance(app.screen, Late) and app.typed == "before"
        await app.screen.add()
        await until(pilot, lambda: app.screen.query_one(Input).value == "demo", "the letters")
        assert not app.noted


async def test_a_drag_keeps_its_order() -> None:
    seen = list[str]()

    class Pad(Static):
        def on_mouse_down(self) -> None:
            seen.append("down")

        def on_mouse_move(self) -> None:
            seen.append("move")

        def on_mouse_up(self) -> None:
            seen.append("up")

        def on_click(self) -> None:
            seen.append("click")

    class Drags(KeysInOrder):
        def compose(self) -> ComposeResult:
            yield Pad("here")

    app = Drags()
    async with app.run_test() as pilot:
        for kind in (events.MouseDown, events.MouseMove, events.MouseMove, events.MouseUp):
            app.post_message(kind(None, 1, 0, 1, 0, 1, False, False, False, screen_x=1, screen_y=0))
        await until(pilot, lambda: "click" in seen, "the click")
        assert seen == ["down", "move", "move", "up", "click"]


async def test_no_key_waits_for_a_look_at_all_that_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    before = gc.get_threshold()
    put_off = (*before[:2], NEVER)
    app = Form(Input())
    async with app.run_test() as pilot:
        assert gc.get_threshold() == before
        await pilot.press("a")
        assert gc.get_threshold() == put_off
        monkeypatch.setattr(key_order, "IDLE", 0.01)
        await pilot.press("b")
        await until(pilot, lambda: gc.get_threshold() == before, "the end of the keys")
        monkeypatch.setattr(key_order, "IDLE", IDLE)
        await pilot.press("c")
        assert gc.get_threshold() == put_off
    assert gc.get_threshold() == before, "nor is it put off for ever"

"""Drawings that are put off come, however short the time."""

import time

import pytest
from textual.app import App

from tests.helpers.interface.wizard_pilot import until
from wanlora_tui.widgets import redraw_throttle
from wanlora_tui.widgets.redraw_throttle import Rest, Throttle

pytestmark = pytest.mark.unit


async def test_a_drawing_that_is_put_off_by_next_to_nothing_still_comes(monkeypatch: pytest.MonkeyPatch):
    app, drawn = App[None](), []
    async with app.run_test() as pilot:
        throttle = Throttle(app, lambda: drawn.append(1))
        throttle.ask()
        assert len(drawn) == 1
        asked = throttle._drawn_at + redraw_throttle.SECONDS - 1e-9
        with monkeypatch.context() as patch:
            patch.setattr(time, "monotonic", lambda: asked)
            throttle.ask()
        throttle.ask()  # one is on its way already
        await until(pilot, lambda: len(drawn) == 2, "the second drawing")


async def test_what_rests_comes_once_and_late_or_when_it_is_wanted_at_once():
    app, called = App[None](), []
    async with app.run_test() as pilot:
        rest = Rest(app, lambda: called.append(1), 3600.0)
        rest.now()
        assert not called, "nobody has asked"
        rest.ask()
        rest.ask()
        await pilot.pause()
        assert not called and rest.is_waited_for
        rest.now()
        assert len(called) == 1 and not rest.is_waited_for
        rest.seconds = 0.01
        rest.ask()
        await until(pilot, lambda: len(called) == 2, "the call")
        rest.ask()
        rest.cancel()
        assert not rest.is_waited_for

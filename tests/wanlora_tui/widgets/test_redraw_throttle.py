"""Drawings that are put off come, however short the time."""

import time

import pytest
from textual.app import App

from tests.helpers.interface.wizard_pilot import until
from wanlora_tui.widgets import redraw_throttle
from wanlora_tui.widgets.redraw_throttle import Throttle

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

"""The question before what cannot be taken back, and notices that come while it is open."""

import pytest
from textual.app import App
from textual.widgets import Button, Footer
from textual.widgets._toast import Toast

from tests.helpers.interface.wizard_pilot import screen_text, until
from tests.helpers.waiting import PATIENCE
from wanlora_tui import app as wanlora_app
from wanlora_tui.screens.confirm import Confirm


class Asking(App[None]):
    CSS_PATH = wanlora_app.__file__.replace("app.py", "app.tcss")
    HORIZONTAL_BREAKPOINTS = wanlora_app.WanloraApp.HORIZONTAL_BREAKPOINTS


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (160, 48)])
async def test_notices_leave_the_question_and_its_answers_in_view(size: tuple[int, int]) -> None:
    app = Asking()
    async with app.run_test(size=size, notifications=True) as pilot:
        question = "Go back to step 400 of 2400? What came after it is abandoned. " * 3
        await app.push_screen(Confirm(question, "Go back", "Stay"))
        for i in range(2):
            app.notify(f"what was said before it, number {i}", timeout=PATIENCE)
        await until(pilot, lambda: "number 1" in screen_text(app), "the notices")
        toasts = [toast.region for toast in app.screen.query(Toast)]
        assert len(toasts) == 2 and all(app.screen.region.contains_region(toast) for toast in toasts)
        for selector in ("#confirm-box", Footer):
            region = app.screen.query_one(selector).region
            assert app.screen.region.contains_region(region)
            assert not any(toast.overlaps(region) for toast in toasts), screen_text(app)


async def test_both_answers_are_whole_on_a_small_terminal() -> None:
    app = Asking()
    async with app.run_test(size=(40, 12)) as pilot:
        question = (
            "Stop kite_style? It saves a checkpoint first and can be resumed.\nTo leave without stopping it, press q."
        )
        await app.push_screen(Confirm(question, "Stop", "Keep running"))
        await until(pilot, lambda: "Keep running (n)" in screen_text(app), "the question")
        assert "Stop (y)" in screen_text(app)
        room = app.screen.query_one("#confirm-box").content_region
        assert all(room.contains_region(answer.region) for answer in app.screen.query(Button)), screen_text(app)

"""A table of which only the rows in view are made."""

import random
from collections.abc import Mapping

import pytest
from rich.text import Text
from textual.app import App, ComposeResult
from textual.widgets import Input

from tests.helpers.interface.drawn import Drawn, settled, stale
from tests.helpers.interface.wizard_pilot import screen_text
from wanlora_tui.widgets.key_order import KeysInOrder
from wanlora_tui.widgets.long_table import Column, LongTable
from wanlora_tui.widgets.redraw_throttle import SparingScreen


class Numbers(LongTable):
    asked: set[int]
    words: Mapping[int, str] = {}

    def cells(self, row: int) -> list[Text]:
        self.asked.add(row)
        return [Text(self.words.get(row, f"row {row}")), Text("wide " * 40)]


class TableApp(App[None]):
    def __init__(self) -> None:
        super().__init__()
        self.chosen: list[int] = []

    def compose(self) -> ComposeResult:
        table = Numbers(id="numbers")
        table.asked = set()
        yield table

    def on_mount(self) -> None:
        self.query_one(Numbers).set_rows([Column("Name", 10), Column("Text", None)], 100_000)
        self.query_one(Numbers).focus()

    def on_long_table_chosen(self, event: LongTable.Chosen) -> None:
        self.chosen.append(event.row)


async def test_only_rows_in_view_are_made_wherever_the_cursor_goes():
    app = TableApp()
    async with app.run_test(size=(60, 12)) as pilot:
        table = app.query_one(Numbers)
        assert "row 0" in screen_text(app) and "row 10" in screen_text(app) and "row 11" not in screen_text(app)
        await pilot.press("end")
        await pilot.pause()
        assert "row 99999" in screen_text(app) and "Name" in screen_text(app)
        await pilot.press("k", "up", "pageup")
        assert table.cursor_row == 99_987
        await pilot.press("g")
        await pilot.pause()
        assert table.cursor_row == 0 and "row 0" in screen_text(app)
        await pilot.press("up", "down", "j", "enter")
        assert app.chosen == [2]
        assert len(table.asked) < 60
        assert "…" in screen_text(app), "what does not fit is cut"


async def test_line_breaks_and_tabs_in_a_cell_move_no_column():
    app = TableApp()
    async with app.run_test(size=(60, 12)) as pilot:
        table = app.query_one(Numbers)
        table.words = {0: "a\nb", 1: "a\tb", 2: "a\nb\nc\td\ne\nf\ng"}
        table.set_rows(table.columns, 4)
        await pilot.pause()
        rows = screen_text(app).splitlines()[1:5]
        assert {row.index("wide") for row in rows} == {11}, rows
        assert rows[0].startswith("a b  ") and rows[2].startswith("a b c d e…"), rows


async def test_mouse_and_fewer_rows():
    app = TableApp()
    async with app.run_test(size=(60, 12)) as pilot:
        table = app.query_one(Numbers)
        await pilot.click(Numbers, offset=(3, 4))
        assert table.cursor_row == 3 and app.chosen == []
        await pilot.click(Numbers, offset=(3, 4))
        assert app.chosen == [3]
        await pilot.press("end")
        table.set_rows(table.columns, 2)
        await pilot.pause()
        assert table.cursor_row == 1 and "row 1" in screen_text(app)
        table.set_rows(table.columns, 0)
        await pilot.press("enter", "down")
        assert table.cursor_row == 0 and app.chosen == [3]
        assert table.check_action("choose", ()) is False, "no row is offered to be chosen"


async def test_rows_that_say_something_else_are_drawn_alone():
    app = TableApp()
    async with app.run_test(size=(60, 12)) as pilot:
        table = app.query_one(Numbers)
        await pilot.pause()
        drawn, line = [], table.render_line
        table.render_line = lambda y: drawn.append(y) or line(y)
        table.words = {3: "another", 99_000: "out of view"}
        table.draw_changed()
        await pilot.pause()
        assert drawn == [4] and "another" in screen_text(app)
        table.draw_changed()
        await pilot.pause()
        assert drawn == [4], "nothing has changed"


async def test_a_table_that_scrolls_makes_the_rows_that_are_new_alone_and_a_theme_makes_all_anew():
    app = TableApp()
    async with app.run_test(size=(60, 12)) as pilot:
        table = app.query_one(Numbers)
        await pilot.press(*["down"] * 10)
        await pilot.pause()
        drawn, line = [], table.render_line
        table.render_line = lambda y: drawn.append(table.scroll_offset.y + y - 1) or line(y)
        await pilot.press("down", "down")
        await pilot.pause()
        assert table.scroll_offset.y == 2 and set(drawn) == {10, 11, 12}
        kept = [list(strip) for strip in table.render_lines(table.size.region)]
        table.set_rows(table.columns, table.row_count)
        assert kept == [list(strip) for strip in table.render_lines(table.size.region)], "as if made anew"
        app.theme = "textual-light"
        await pilot.pause()
        light = [list(strip) for strip in table.render_lines(table.size.region)]
        assert all(one != other for one, other in zip(kept, light, strict=True))


class Changing(LongTable):
    """Says what stands in `said`, wide characters too."""

    said: list[str] = []  # noqa: RUF012

    def cells(self, row: int) -> list[Text]:
        return [Text(str(row)), Text(self.said[row])]


class ChangingScreen(SparingScreen[None]):
    def compose(self) -> ComposeResult:
        yield Input()
        yield Changing(id="table")


@pytest.mark.parametrize("colours", [True, pytest.param(False, marks=pytest.mark.thorough)])
async def test_no_stale_line_stays_on_the_screen(monkeypatch: pytest.MonkeyPatch, colours: bool) -> None:
    if not colours:
        monkeypatch.setenv("NO_COLOR", "1")
    drawn, app, dice = Drawn(), KeysInOrder(), random.Random(3)
    monkeypatch.setattr(app, "_display", lambda screen, update: app._batch_count or drawn.take(update))
    whats = ["rows"] * 9 + ["move"] * 9 + ["wheel"] * 6 + ["scroll"] * 3 + ["focus"] * 3 + ["theme", "size", "fewer"]
    words = ["", "a", "turns slowly", "片片片", "一只猫 walks " * 9, "e\u0301"]
    async with app.run_test(size=(40, 12)) as pilot:
        await app.push_screen(screen := ChangingScreen())
        await pilot.pause()
        table, done = screen.query_one(Changing), []
        table.said = [dice.choice(words) for _ in range(60)]
        columns = [Column("N", 3, True), Column("Says", None)]
        table.set_rows(columns, 60)
        for _ in range(150):
            done.append(what := dice.choice(whats))
            match what:
                case "rows":  # also those that are scrolled out
                    for row in dice.sample(range(len(table.said)), len(table.said) // 3):
                        table.said[row] = dice.choice(words) + str(len(done))
                    table.draw_changed()
                case "move":
                    table.move_cursor(table.cursor_row + dice.randrange(-15, 16))
                case "scroll":
                    table.scroll_to(y=dice.randrange(60), animate=False)
                case "wheel":
                    table.scroll_relative(y=dice.choice([-3, 3]), animate=False)
                case "focus":
                    screen.focus_next()
                case "theme":
                    app.theme = dice.choice(["textual-light", "textual-dark", "nord", "solarized-light"])
                case "size":
                    await pilot.resize_terminal(*dice.choice([(40, 12), (41, 12), (80, 24), (40, 3), (20, 30)]))
                case "fewer":
                    table.said = [dice.choice(words) for _ in range(dice.choice([0, 3, 60, 60, 60]))]
                    table.set_rows(columns, len(table.said))
            if dice.random() < 0.6:  # else more comes before it is drawn
                await settled(pilot)
                assert stale(drawn, screen) is None, done[-8:]

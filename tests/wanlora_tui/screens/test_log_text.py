"""Long lines of a log: they go on below their words, and are one line to whoever searches, clicks or copies."""

import pytest
from rich.text import Text
from textual.app import App, ComposeResult
from textual.geometry import Offset

from wanlora_tui.output.hanging import hanging
from wanlora_tui.output.log_lines import LABEL
from wanlora_tui.screens.log_text import LogText

WORDS = [
    "short",
    "Weights were written to /data/runs/orbit_v1/checkpoints/step_000000100/adapter_model.safetensors and read again",
    "日本語 の 長い 行 " * 6,
    "x" * 130,
]
LINES = [f"12:34:56 ► {words}" for words in WORDS]


class Shown(App[None]):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def compose(self) -> ComposeResult:
        text = LogText(read_only=True, soft_wrap=True, compact=True, show_line_numbers=False)
        text.hang = LABEL
        yield text

    def on_mount(self) -> None:
        self.query_one(LogText).load_text("\n".join(self._lines))


def rows(app: App[None]) -> list[str]:
    text = app.query_one(LogText)
    return ["".join(s.text for s in text.render_line(y)).rstrip() for y in range(text.wrapped_document.height)]


@pytest.mark.parametrize("columns", [40, 80])
async def test_a_long_line_goes_on_below_its_words_as_in_the_pane_of_the_dashboard(columns: int):
    async with Shown(LINES).run_test(size=(columns, 40)) as pilot:
        await pilot.pause()
        width = pilot.app.query_one(LogText).wrap_width
        pane = [hanging(Text("12:34:56 ► "), Text(words), width).plain.split("\n") for words in WORDS]
        assert rows(pilot.app) == [line.rstrip() for lines in pane for line in lines]


async def test_where_there_is_no_room_below_the_words_it_goes_on_near_the_edge():
    async with Shown(LINES[:2]).run_test(size=(22, 40)) as pilot:
        await pilot.pause()
        assert all(row.startswith("  ") and row[2] != " " for row in rows(pilot.app)[2:])


async def test_a_click_hits_the_sign_under_it_and_a_copy_is_the_line_as_it_was():
    async with Shown(LINES).run_test(size=(60, 40)) as pilot:
        await pilot.pause()
        text = pilot.app.query_one(LogText)
        for line, words in enumerate(LINES):
            for column in range(len(words)):
                at = text.wrapped_document.location_to_offset((line, column))
                assert text.wrapped_document.offset_to_location(at) == (line, column)
        row = next(y for y, shown in enumerate(rows(pilot.app)) if "adapter_model" in shown)
        x = rows(pilot.app)[row].index("adapter_model")
        region = text.content_region.offset
        await pilot.click(offset=region + Offset(x, row))
        assert LINES[1][text.cursor_location[1] :].startswith("adapter_model")
        text.select_all()
        assert text.selected_text == "\n".join(LINES)


async def test_lines_that_come_are_broken_as_if_they_had_been_there():
    async with (
        Shown(LINES).run_test(size=(50, 40)) as pilot,
        Shown([*LINES, *LINES[::-1]]).run_test(size=(50, 40)) as all_,
    ):
        await pilot.pause()
        text = pilot.app.query_one(LogText)
        for line in LINES[::-1]:
            text.insert(f"\n{line}", text.document.end)
        await pilot.pause()
        await all_.pause()
        assert rows(pilot.app) == rows(all_.app)

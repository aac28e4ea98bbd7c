"""The events in their pane: each line as wide as the pane, what follows under its first word."""

import pytest
from textual.app import App, ComposeResult

from presets.runs.run_view import LogLine
from wanlora_tui.widgets.event_log_view import EventLogView

WORDS = " ".join(f"word{i:02}" for i in range(30))  # 209 columns


class LogApp(App[None]):
    CSS = "EventLogView { scrollbar-size-vertical: 1; }"

    def compose(self) -> ComposeResult:
        yield EventLogView()


@pytest.mark.parametrize("width", [50, 100, 160])
async def test_a_long_line_takes_the_whole_width(width: int):
    app = LogApp()
    async with app.run_test(size=(width, 20)) as pilot:
        log = app.query_one(EventLogView)
        log.show([LogLine(1_790_000_000.0, "log", WORDS)])
        await pilot.pause()
        _, *lines = [line.text.rstrip() for line in log.lines]
        assert " ".join(lines).split()[1:] == WORDS.split()
        assert all(line.startswith(" " * 11 + "word") for line in lines[1:])
        assert all(width - 1 - len("word00 ") <= len(line) <= width - 1 for line in lines[:-1])

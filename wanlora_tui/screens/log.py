"""A run's log on the whole screen: its events with their days, or what its trainer itself has written. It is searched
by the eye and by words, and acts on nothing.

The pane of the dashboard is wanlora_tui.widgets.event_log_view's.
"""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from textual import on, work
from textual.app import ComposeResult
from textual.message import Message
from textual.widgets import Input
from textual.worker import Worker, get_current_worker

from presets.errors import UserError
from presets.runs.run_view import LOG_TAIL
from presets.text import escaped
from wanlora_tui.actions import bindings
from wanlora_tui.feeds.run_feed import ShownRun
from wanlora_tui.feeds.status_lights import Link, no_link
from wanlora_tui.output.far_words import shown_path
from wanlora_tui.output.formatting import count
from wanlora_tui.output.log_lines import DAY, KINDS, LABEL, text_lines
from wanlora_tui.screens.log_text import LogText
from wanlora_tui.transfer.messages import Cut, Files
from wanlora_tui.transfer.tail import TextTail, attempt_log
from wanlora_tui.widgets.fitting_footer import FittingFooter
from wanlora_tui.widgets.pasting import OneLine
from wanlora_tui.widgets.phase_bar import TitleLine
from wanlora_tui.widgets.redraw_throttle import SparingScreen

LOOK_SECONDS = 1.0  # between two looks for more
MOST_LINES = 20_000  # of a trainer's output that are kept; the file has all
TOO_MANY = 2 * MOST_LINES
OUTPUT_HANG = 2  # columns by which a long line of a trainer's output goes on further right
SPARE = ("log.previous", "log.copy", "log.kind", "log.source")  # of the footer, where there is little room


@dataclass
class Tailed(Message):
    """What came of a trainer's output. `by`: the thread that read it; `anew`: it replaces what was there."""

    by: Worker[None]
    path: str
    lines: list[str]
    anew: bool
    problem: str = ""


class LogScreen(SparingScreen[None]):
    """`run` is followed by the screen below this one. `files` opens a way to the files of the job's machine, `link`
    tells what is wrong with the connection to it."""

    HELP_GROUP = "log"
    AUTO_FOCUS = "LogText"
    BINDINGS = bindings("log.search", "log.next", "log.previous", "log.kind", "log.source", "log.copy", "log.close")
    DEFAULT_CSS = """
    LogScreen #log-title { height: 1; padding: 0 1; background: $panel; text-wrap: nowrap; text-overflow: ellipsis; }
    LogScreen LogText { height: 1fr; border: none; padding: 0 1; background: $background; }
    LogScreen LogText:focus { border: none; }
    LogScreen #log-search { height: 1; padding: 0 1; display: none; }
    """

    def __init__(self, run: ShownRun, files: Callable[[], Files], link: Link = no_link) -> None:
        super().__init__()
        self._run, self._files, self._link = run, files, link
        self._kind, self._trainer = "all", False
        self._lines: list[str] = []
        self._shown: tuple[object, ...] = ()
        self._words, self._note = "", ""
        self._found = False  # whether a line has the words
        self._reading: Worker[None] | None = None  # the thread that follows the trainer's output

    def compose(self) -> ComposeResult:
        yield TitleLine(id="log-title")
        text = LogText(read_only=True, soft_wrap=True, compact=True, show_line_numbers=False, id="log-text")
        text.cursor_blink, text.hang = False, LABEL
        yield text
        yield OneLine(placeholder="words to find in the log: Enter, then n and N", compact=True, id="log-search")
        yield FittingFooter(spare=SPARE)

    def on_mount(self) -> None:
        self.set_interval(LOOK_SECONDS, self._look)
        self._look()
        self._text.action_last()

    @property
    def _text(self) -> LogText:
        return self.query_one(LogText)

    # --- what is shown -----------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Events that have come; the trainer's output comes by messages."""
        view = self._run.view
        shown = (self._kind, view.run, view.last_seq)
        if not self._trainer and shown != self._shown:
            self._shown = shown
            self._replace(list(text_lines(view.log, self._kind)))
            first = len(view.log) >= LOG_TAIL
            self._note = f"the last {LOG_TAIL}; events.jsonl has all" if first else ""
        self._render_title()

    def _replace(self, lines: list[str]) -> None:
        """Show other lines: what only grew at the end keeps the reader's place."""
        text, before = self._text, self._lines
        follow = text.at_end
        self._lines = lines
        if before and lines[: len(before)] == before:
            if more := lines[len(before) :]:
                text.insert("\n" + "\n".join(more), text.document.end, maintain_selection_offset=False)
        else:
            at = text.cursor_location
            text.load_text("\n".join(lines))
            text.move_cursor((min(at[0], max(0, len(lines) - 1)), 0))
        if follow:
            text.action_last()

    def _render_title(self) -> None:
        record = self._run.record
        attempt = max(record.attempt, self._run.view.attempt)
        what = f"output of the trainer{f', attempt {attempt}' if attempt else ''}" if self._trainer else "events"
        kind = "" if self._trainer or self._kind == "all" else f": {self._kind} only"
        # the day between two lines is none
        number = len(self._lines) if self._trainer else sum(not line.startswith(DAY) for line in self._lines)
        parts = [what + kind, count(number, "line")]
        rows = self._matches()
        if self._found != bool(rows):
            self._found = bool(rows)
            self.refresh_bindings()
        if self._words:
            at = self._text.cursor_location[0]
            place = f"{rows.index(at) + 1} of " if at in rows else ""
            parts.append(f"{place}{len(rows)} with '{self._words}'" if rows else f"nothing with '{self._words}'")
        light = None if self._trainer else self._link(self._run.beat_age)  # the trainer's output tells its own
        rest = f"  {', '.join(parts)}   {light.line if light else self._note}"
        self.query_one(TitleLine).show(record.name, escaped(rest))
        nothing = self._note or f"There is nothing{kind}."  # where there are no lines
        if self._text.placeholder != nothing:
            self._text.placeholder = nothing

    def action_next_kind(self) -> None:
        kinds = list(KINDS)
        self._kind = kinds[(kinds.index(self._kind) + 1) % len(kinds)]
        self._look()
        self._text.action_last()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "next_kind":
            return not self._trainer
        if action == "next_match":
            return self._found
        return True

    # --- the trainer's own output ------------------------------------------------------------------------------

    def action_switch_source(self) -> None:
        self._trainer = not self._trainer
        self._shown, self._note = (), ""
        self._text.hang = OUTPUT_HANG if self._trainer else LABEL
        self._replace([])
        if self._trainer:
            self._note = "… reading"
            self._reading = self._follow_output()
        else:
            self.workers.cancel_group(self, "trainer's output")
        self._look()
        self._text.action_last()
        self.refresh_bindings()

    @work(thread=True, exclusive=True, group="trainer's output", exit_on_error=False)
    def _follow_output(self) -> None:
        """Look for more until the screen is closed. A way that broke is opened anew."""
        worker: Worker[None] = get_current_worker()
        while not worker.is_cancelled:
            try:
                with closing(self._files()) as files:
                    tail = TextTail(files)
                    while not worker.is_cancelled:
                        record = self._run.record
                        path = attempt_log(record.run_dir, max(1, record.attempt, self._run.view.attempt))
                        lines, anew = tail.read(path)
                        if lines or anew:
                            shown = [escaped(line.expandtabs()) for line in lines]
                            self.post_message(Tailed(worker, path, shown, anew))
                        time.sleep(LOOK_SECONDS)
            except (UserError, Cut, OSError) as e:
                self.post_message(Tailed(worker, "", [], anew=False, problem=str(e)))
                time.sleep(LOOK_SECONDS)

    @on(Tailed)
    def _tailed(self, event: Tailed) -> None:
        if not self._trainer or event.by is not self._reading:  # what an earlier look has still sent
            return
        if event.problem:
            self._note = f"cannot be read now: {event.problem}"
        else:
            self._note = "" if event.lines or self._lines else "nothing yet in "
            self._note += shown_path(event.path)
            lines = event.lines if event.anew else self._lines + event.lines
            if len(lines) > TOO_MANY:
                lines = lines[-MOST_LINES:]
            self._replace(lines)
            if event.anew:
                self._text.action_last()
        self._render_title()

    # --- search ------------------------------------------------------------------------------------------------

    def _matches(self) -> list[int]:
        return [i for i, line in enumerate(self._lines) if self._words.lower() in line.lower()] if self._words else []

    def action_search(self) -> None:
        field = self.query_one("#log-search", Input)
        field.display = True
        field.focus()

    @on(Input.Submitted, "#log-search")
    def _search(self, event: Input.Submitted) -> None:
        self._words = event.value.strip()
        self._close_search()
        self._go(0)
        self.refresh_bindings()

    def action_next_match(self, by: int) -> None:
        self._go(by)

    def _go(self, by: int) -> None:
        """To the next match, round the ends; 0: to the nearest one from here on."""
        rows, at = self._matches(), self._text.cursor_location[0]
        if rows:
            if by < 0:
                row = next((r for r in reversed(rows) if r < at), rows[-1])
            else:
                row = next((r for r in rows if r > at or (r == at and by == 0)), rows[0])
            column = self._lines[row].lower().index(self._words.lower())
            self._text.move_cursor((row, column))
            self._text.move_cursor((row, column + len(self._words)), select=True)
            self._text.scroll_cursor_visible(center=True)
        self._render_title()

    def _close_search(self) -> None:
        self.query_one("#log-search", Input).display = False
        self._text.focus()

    # --- copying and leaving -----------------------------------------------------------------------------------

    def action_copy_line(self) -> None:
        text = self._text.selected_text
        if text.lower() in ("", self._words.lower()) and self._lines:  # of a match its line: its words are known
            text = self._lines[min(self._text.cursor_location[0], len(self._lines) - 1)]
        if text:
            self.app.copy_to_clipboard(text)
            shown = text if len(text) <= 200 else f"{text[:200]} …"
            self.notify(f"{shown}\nSent to the terminal's clipboard (OSC 52).", title="Copied", markup=False)

    def action_close(self) -> None:
        if self.query_one("#log-search", Input).has_focus:
            self._close_search()
        else:
            self.dismiss()

"""jobs.watch: one job, line by line, until it ends. How an event reads is wanlora_tui.output.plain_lines's."""

import asyncio
import sys
from argparse import Namespace
from pathlib import Path

from daemon.settings import CostSettings
from daemon.wire.client import BegunAnew, Client
from daemon.wire.protocol import ENDED_STATES, JobRecord
from presets.runs.events import Event
from presets.runs.run_view import RunView, apply_event
from presets.runs.time_left import PlannedTime
from presets.text import escaped, to_type, unescaped, write_over
from wanlora_tui.commands.common import pick_job, print_json, say
from wanlora_tui.feeds.ends import Ends
from wanlora_tui.feeds.run_times import cost_settings
from wanlora_tui.output.far_words import advised
from wanlora_tui.output.formatting import ending, waits_for
from wanlora_tui.output.plain_lines import plain_line
from wanlora_tui.terminal.attention import attention, wished
from wanlora_tui.terminal.streams import is_dumb, is_terminal, terminal_width

OUTCOMES = {"done": 0, "stopped": 75, "failed": 1, "cancelled": 1}


class JsonPrinter:
    """The event objects, one per line."""

    live = False
    planned: PlannedTime | None = None
    cost: CostSettings | None = None

    def event(self, view: RunView, event: Event) -> None:
        print_json(event)

    def close(self) -> None:
        pass


class LinePrinter:
    """One line per event. On a terminal (`live`) steps share one line that is written over."""

    planned: PlannedTime | None = None  # of the job, for what its run has not measured yet
    cost: CostSettings | None = None  # as the user has set it

    def __init__(self, *, live: bool) -> None:
        self.live, self.open_line = live, False

    def event(self, view: RunView, event: Event) -> None:
        line = advised(plain_line(view, event, self.planned, self.cost))
        if self.live and event.kind in ("step", "phase") and event.data.get("name") != "paused":
            # of a line that is written over nobody needs the time; without it the ETA has room in 80 columns
            _, _, now = line.partition(" ")
            # a line that wraps could not be written over
            write_over(escaped(now)[: max(1, terminal_width(sys.stdout) - 1)], sys.stdout)
            self.open_line = True
        else:
            self.close()
            print(line, flush=True)

    def close(self) -> None:
        if self.open_line:
            print(flush=True)
        self.open_line = False


Printer = JsonPrinter | LinePrinter


async def watch_job(folder: Path | None, job: str | int, *, since: int, printer: Printer) -> tuple[JobRecord, RunView]:
    """Print the job's events until it is over and all of them were printed. Gives its last record and its fold."""
    async with Client(folder) as client:
        record, whole = await client.snapshot(job or pick_job(await client.jobs()).id)
        key, view, ends = record.id, RunView(), Ends()
        printer.planned = record.planned
        printer.cost, problem = cost_settings(folder)
        if problem:
            say(problem)
        ends.fresh([record])
        if client.note:
            say(client.note)
        target = whole.last_seq if record.state in ENDED_STATES else None
        told = ""
        if record.state == "queued":
            told, waits = record.waiting, f"waits in the queue at position {record.position}"
            say(f"{record.name}: {record.held}" if record.held else f"{record.name} {waits}.{_why(record)}")
        if target is not None and since >= target:
            return record, whole
        # The fold starts at the first event whatever `since` says: a line needs the totals that `started` brought.
        async for item in client.follow(key, since=0):
            if isinstance(item, BegunAnew):
                printer.close()
                say(f"{record.name} has begun anew: its run folder was emptied. From its first event:")
                view, since = RunView(), 0
            elif isinstance(item, Event):
                apply_event(view, item)
                if item.seq > since:
                    printer.event(view, item)
            elif isinstance(item, JobRecord):
                record, printer.planned = item, item.planned
                target = None
                if record.waiting not in ("", told):
                    printer.close()
                    say(f"{record.name} is queued.{_why(record)}")
                told = record.waiting
                if record.state in ENDED_STATES:
                    record, whole = await client.snapshot(key)
                    target = whole.last_seq
            if target is not None and view.last_seq >= target:
                break
    printer.close()
    if printer.live and ends.fresh([record]):
        call_user(record, folder)
    return record, view


def call_user(ended: JobRecord, folder: Path | None) -> None:
    """A job is done or has failed, and whoever watches may be looking elsewhere."""
    settings, problem = wished(folder)
    if problem:
        say(problem)
    terminal = unescaped(sys.stdout)
    terminal.write(attention("wanlora", ending(ended.name, ended.state, ended.outcome), settings))
    terminal.flush()


def _why(record: JobRecord) -> str:
    restart = f" It {waits_for(record)}." if record.restart_at else ""
    return f"{restart} {record.waiting}".rstrip()


def watch(args: Namespace) -> int:
    """The exit code is the job's outcome: 0 done, 75 stopped and can be resumed, 1 failed or cancelled."""
    printer: Printer = (
        JsonPrinter() if args.json else LinePrinter(live=is_terminal(sys.stdout) and not is_dumb() and not args.plain)
    )
    try:
        record, _ = asyncio.run(watch_job(args.dir, args.job or "", since=args.since, printer=printer))
    except KeyboardInterrupt:
        printer.close()
        name = args.job or "the job"
        say(f"Left. {name} keeps running; come back with: {to_type('watch', args.job or '')}")
        return 130
    if record.state != "done":
        say(ending(record.name, record.state, record.outcome))
    return OUTCOMES[record.state]

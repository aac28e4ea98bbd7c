"""watch: one job, line by line, until it ends. How an event reads is wanlora_tui.output.plain_lines's."""

import asyncio
import sys
from argparse import Namespace
from pathlib import Path

import msgspec

from daemon.wire.client import Client
from daemon.wire.protocol import ENDED_STATES, JobRecord
from presets.runs.events import Event
from presets.runs.run_view import RunView, apply_event
from wanlora_tui.commands.common import pick_job, say
from wanlora_tui.output.formatting import ending
from wanlora_tui.output.plain_lines import plain_line
from wanlora_tui.terminal.streams import is_dumb, is_terminal, terminal_width

OUTCOMES = {"done": 0, "stopped": 75, "failed": 1, "cancelled": 1}


class JsonPrinter:
    """The event objects, one per line."""

    def event(self, view: RunView, event: Event) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(event) + b"\n")
        sys.stdout.buffer.flush()

    def close(self) -> None:
        pass


class LinePrinter:
    """One line per event. On a terminal (`live`) steps share one line that is written over."""

    def __init__(self, *, live: bool) -> None:
        self.live, self.open_line = live, False

    def event(self, view: RunView, event: Event) -> None:
        line = plain_line(view, event)
        if self.live and event.kind in ("step", "phase") and event.data.get("name") != "paused":
            # of a line that is written over nobody needs the time; without it the ETA has room in 80 columns
            _, _, now = line.partition(" ")
            # a line that wraps could not be written over
            print(f"\r\x1b[K{now[: max(1, terminal_width(sys.stdout) - 1)]}", end="", flush=True)
            self.open_line = True
        else:
            self.close()
            print(line, flush=True)

    def close(self) -> None:
        if self.open_line:
            print(flush=True)
        self.open_line = False


Printer = JsonPrinter | LinePrinter


async def watch_job(folder: Path | None, job: str, *, since: int, printer: Printer) -> tuple[JobRecord, RunView]:
    """Print the job's events until it is over and all of them were printed. Gives its last record and its fold."""
    async with Client(folder) as client:
        record, whole = await client.snapshot(job or str(pick_job(await client.jobs()).id))
        key, view = str(record.id), RunView()
        target = whole.last_seq if record.state in ENDED_STATES else None
        if record.state == "queued":
            say(f"{record.name} waits in the queue at position {record.position}.")
        if target is not None and since >= target:
            return record, whole
        # The fold starts at the first event whatever `since` says: a line needs the totals that `started` brought.
        async for item in client.follow(key, since=0):
            if isinstance(item, Event):
                apply_event(view, item)
                if item.seq > since:
                    printer.event(view, item)
            elif isinstance(item, JobRecord):
                record = item
                target = None
                if record.state in ENDED_STATES:
                    record, whole = await client.snapshot(key)
                    target = whole.last_seq
            if target is not None and view.last_seq >= target:
                break
    printer.close()
    return record, view


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
        say(f"Left. {name} keeps running; come back with: wanlora watch{' ' + args.job if args.job else ''}")
        return 130
    if record.state != "done":
        say(ending(record.name, record.state, record.outcome))
    return OUTCOMES[record.state]

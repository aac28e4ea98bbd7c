"""The dashboard of a recorded run as an SVG picture: `python -m wanlora_tui.screenshot OUT.svg --events
RUN/events.jsonl`.

It is the real screen, drawn from a real run's events; nothing in it is made up for the picture.
"""

import argparse
import asyncio
import sys
from pathlib import Path
from typing import cast

from textual.widget import Widget

from daemon.settings import CostSettings
from daemon.wire.protocol import JobRecord, JobState
from presets.errors import UserError
from presets.runs.events import Event, read_events
from presets.runs.run_view import RunView, apply_event
from presets.text import escape_output
from wanlora_tui.actions.own_actions import OwnActions
from wanlora_tui.feeds.run_feed import RecordedRun
from wanlora_tui.screens.dashboard import DashboardScreen
from wanlora_tui.terminal.pictures import picture_class
from wanlora_tui.themes import ReadableThemes

SIZE = (150, 44)  # columns, rows: wide enough for every pane, small enough to read in a page


class RecordedApp(OwnActions, ReadableThemes):
    """Only the dashboard, over a run that is over or cut off at some event."""

    CSS_PATH = "app.tcss"

    def __init__(self, run: RecordedRun, image: type[Widget], *, cost: CostSettings | None = None) -> None:
        super().__init__()
        self._run_shown, self._image, self._cost = run, image, cost

    def on_mount(self) -> None:
        self.push_screen(DashboardScreen(self._run_shown, None, self._image, cost=self._cost))


def record_of(events: list[Event], run_dir: Path, *, job_id: int = 1) -> JobRecord:
    """The job record that the daemon would hold for these events."""
    view = RunView()
    for event in events:
        apply_event(view, event)
    return JobRecord(
        id=job_id,
        name=view.name,
        job_path=str(run_dir / "job.toml"),
        out=str(run_dir.parent),
        gpus=[0],
        state=cast(JobState, view.state),  # each state of a run is one of a job
        attempt=view.attempt,
        step=view.step,
        steps=view.steps,
        outcome=view.outcome,
    )


def load_run(events_file: Path, *, until_step: int = 0) -> RecordedRun:
    """A run folder's events, up to a step (0: all of them). Raises UserError."""
    try:
        events = [event for event, _ in read_events(events_file)]
    except OSError as e:
        raise UserError(f"cannot be read: {e.strerror}", where=str(events_file)) from None
    if until_step:
        last = next(
            (i for i, e in enumerate(events) if e.kind == "step" and e.data["step"] >= until_step), len(events) - 1
        )
        events = events[: last + 1]
    if not any(e.kind == "started" for e in events):
        raise UserError("no run in this file", where=str(events_file), fix="Name the events.jsonl of a run folder")
    return RecordedRun(record_of(events, events_file.resolve().parent), events)


async def svg_of(run: RecordedRun, size: tuple[int, int]) -> str:
    """Draw the dashboard without a terminal and give the picture."""
    app = RecordedApp(run, picture_class())
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        await pilot.pause()
        return app.export_screenshot(title=f"wanlora attach {run.record.name}", simplify=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m wanlora_tui.screenshot", description="Draw the dashboard of a recorded run as SVG."
    )
    parser.add_argument("out", type=Path, metavar="OUT.svg")
    parser.add_argument("--events", type=Path, required=True, metavar="FILE", help="events.jsonl of a run folder")
    parser.add_argument(
        "--until-step", type=int, default=0, metavar="N", help="as it looked at this step (default: at the end)"
    )
    parser.add_argument("--size", default=f"{SIZE[0]}x{SIZE[1]}", metavar="COLSxROWS")
    escape_output()
    args = parser.parse_args(argv)
    columns, _, rows = args.size.partition("x")
    if not (columns.isdigit() and rows.isdigit()):
        parser.error(f"--size {args.size!r} is not COLSxROWS")
    try:
        run = load_run(args.events, until_step=args.until_step)
    except (UserError, ValueError) as e:
        print(f"screenshot: {e}", file=sys.stderr)
        return 1
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(asyncio.run(svg_of(run, (int(columns), int(rows)))), "utf-8")
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

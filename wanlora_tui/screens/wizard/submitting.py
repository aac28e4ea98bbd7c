"""Handing a job to the daemon, and what stands on the screen meanwhile.

The daemon is asked by wanlora_tui.feeds.submitter.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen, Screen
from textual.widgets import Footer, Static

from daemon.errors import RequestRefused
from daemon.wire.protocol import JobRecord
from presets.errors import UserError
from presets.text import sentences
from wanlora_tui.actions import bindings
from wanlora_tui.feeds.submitter import Submitter, Unanswered


class SubmittingScreen(ModalScreen[bool]):
    """Keeps the job as it is until the answer is there. Dismisses with True when its user stops waiting."""

    BINDINGS = bindings("launch.cancel")
    DEFAULT_CSS = """
    SubmittingScreen { align: center middle; }
    SubmittingScreen > Vertical {
        width: 66; max-width: 94%; height: auto; border: round $primary; padding: 1 2; background: $surface;
    }
    SubmittingScreen Static { height: auto; }
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.job_name, self.state = name, ""

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = f"Launching {self.job_name}"
            yield Static(self.state, id="launch-state", markup=False)
        yield Footer()

    def say(self, text: str) -> None:
        self.state = text
        for line in self.query("#launch-state").results(Static):  # none before it is shown
            line.update(text)

    def action_cancel(self) -> None:
        self.dismiss(True)


@dataclass
class NotTaken:
    """Why the daemon has not taken a job, one paragraph each. `may_be_taken`: it may have, and no answer came."""

    reasons: list[str]
    may_be_taken: bool


async def hand_in(wizard: Screen[Any], submitter: Submitter, path: Path, sent_before: float) -> JobRecord | NotTaken:
    """The job that the daemon made of a written job file. `sent_before` as for Submitter.submit. To be called from a
    worker."""
    waiting = SubmittingScreen(path.name)
    answer: asyncio.Task[JobRecord] = asyncio.create_task(
        submitter.submit(path, sent_before=sent_before, say=waiting.say)
    )

    def stopped(by_user: bool | None) -> None:
        if by_user:
            answer.cancel()

    try:
        await wizard.app.push_screen(waiting, stopped)
        await asyncio.wait({answer})
    finally:
        answer.cancel()
    while wizard.app.screen is not wizard:  # what was opened meanwhile goes with it
        await wizard.app.pop_screen()
    later = f"The job file is kept. To hand it in from a shell: {submitter.command(path)}"
    if answer.cancelled():
        return NotTaken(
            [
                (
                    "You have stopped waiting. The daemon may still take the job: look at the list of jobs before you"
                    " launch again."
                ),
                later,
            ],
            may_be_taken=True,
        )
    error = answer.exception()
    if error is None:
        return answer.result()
    if not isinstance(error, UserError | OSError):
        raise error
    findings = (
        [f"{f.field}: {sentences(f.message, f.fix)}" for f in error.findings if f.message not in str(error)]
        if isinstance(error, RequestRefused)
        else []
    )
    return NotTaken([str(error), *findings, later], may_be_taken=isinstance(error, Unanswered))

"""The last key of the wizard: the job file is written and handed in, and what stands on the screen meanwhile.

The daemon is asked by wanlora_tui.feeds.submitter.
"""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textual import work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.markup import escape
from textual.screen import Screen
from textual.widgets import Static

from daemon.errors import RequestRefused
from daemon.wire.protocol import JobRecord, PlannedTime
from presets.errors import UserError
from presets.job.toml_file import dump_job, save_job
from presets.text import sentences
from wanlora_tui.actions import bindings
from wanlora_tui.feeds.submitter import Submitter, Unanswered
from wanlora_tui.screens.frame.keeping import KeepingScreen
from wanlora_tui.screens.wizard.dialogs import Ask, close_over
from wanlora_tui.screens.wizard.reading import ReadingScreen
from wanlora_tui.screens.wizard.review import ReviewPane
from wanlora_tui.widgets.fitting_footer import FittingFooter
from wanlora_tui.widgets.redraw_throttle import Dialog


class SubmittingScreen(Dialog[bool]):
    """Keeps the job as it is until the answer is there. Dismisses with True when its user stops waiting."""

    BINDINGS = bindings("launch.cancel", "app.help")
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
            box.border_title = f"Launching {escape(self.job_name)}"
            yield Static(self.state, id="launch-state", markup=False)
        yield FittingFooter(compact=False)

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


async def hand_in(
    wizard: Screen[Any], submitter: Submitter, path: Path, sent_before: float, planned: PlannedTime | None = None
) -> JobRecord | NotTaken:
    """The job that the daemon made of a written job file. `sent_before` and `planned` as for Submitter.submit. To be
    called from a worker."""
    waiting = SubmittingScreen(path.name)
    answer: asyncio.Task[JobRecord] = asyncio.create_task(
        submitter.submit(path, sent_before=sent_before, planned=planned, say=waiting.say)
    )

    def stopped(by_user: bool | None) -> None:
        if by_user:
            answer.cancel()

    try:
        await wizard.app.push_screen(waiting, stopped)
        await asyncio.wait({answer})
    finally:
        answer.cancel()
    await close_over(wizard)
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


class LaunchingScreen(ReadingScreen, KeepingScreen):
    """A screen with a draft that becomes a job; `submitter` None: the written job file is all that is wanted."""

    submitter: Submitter | None

    @work(exclusive=True, group="launch")
    async def launch(self, review: ReviewPane) -> None:
        """Write the job file and hand it in, unless something stands in the way: then say what, and stay."""
        errors = [f for f in review.findings if f.severity == "error"]
        problem = self.state.path_problem()
        if errors:
            names = ", ".join(f"{f.field} ({f.code})" for f in errors[:4]) + (
                f" and {len(errors) - 4} more" if len(errors) > 4 else ""
            )
            self.notify(f"Fix first: {names}", title="Not launched", severity="error", timeout=10)
            review.focus_first()
        elif review.checking:
            self.notify("Still checking the job: one moment, then press ^G again.", severity="warning")
        elif problem:
            self.notify(problem, title="Not launched", severity="error")
            review.query_one("#job-path").focus()
        elif await self._may_write(self.state.job_path(), review):
            path = self.state.job_path().absolute()
            job = self.state.written_job()
            sent_before = (
                self.state.draft.launched_at
                if self.state.draft.launched == str(path) and self.state.wrote(path)
                else 0.0
            )
            try:
                save_job(job, path, fresh=True)
            except UserError as e:
                review.refuse(
                    [
                        sentences(
                            f"The job file {path} {e.what}",
                            "Make room there or repair it, or choose another place above",
                        )
                    ]
                )
                return
            self.state.written[path] = dump_job(job)
            if self.submitter is None:
                self.forget()
                self.dismiss(str(path))
            else:
                await self._hand_in(review, self.submitter, path, sent_before)

    async def _hand_in(self, review: ReviewPane, submitter: Submitter, path: Path, sent_before: float) -> None:
        """Wait for the daemon's answer. The draft says meanwhile that it is under way, in case this program is
        killed."""
        draft = self.state.draft
        draft.launched, draft.launched_at = str(path), sent_before or time.time()
        self.keep()
        answer = await hand_in(self, submitter, path, sent_before, review.planned)
        if isinstance(answer, JobRecord):
            self.forget()
            self.dismiss(answer)
            return
        if not answer.may_be_taken:
            draft.launched = ""
            self.keep()
        review.refuse(answer.reasons)

    async def _may_write(self, path: Path, review: ReviewPane) -> bool:
        if not path.exists() or self.state.wrote(path):
            return True
        answers = {"replace": "Replace it", "keep": "Choose another name"}
        answer = await self.app.push_screen_wait(Ask("Replace this file?", f"{path} exists already.", answers))
        if answer != "replace":
            review.query_one("#job-path").focus()
        return answer == "replace"

"""Resuming a run from the screens: how its job file has changed is shown, and what breaks exactness is asked about.
Whether it may be resumed is presets.job.resume_check's; the command is in wanlora_tui.commands.resume."""

from textual.app import App

from daemon.errors import DaemonError
from daemon.wire.client import Client
from daemon.wire.protocol import JobRecord
from presets.job.resume_check import ResumeCheck
from wanlora_tui.screens.confirm import Confirm

LINES = 6  # of a diff that a question has room for in 24 rows


def diff_text(asked: ResumeCheck) -> str:
    """The changes line by line, those that break exactness first."""
    lines = [f"✗ {c.text}" if c.breaks else f"● {c.text}{_note(asked.mark(c))}" for c in asked.shown]
    return "\n".join(lines[:LINES] + ([f"and {len(lines) - LINES} more"] if len(lines) > LINES else []))


def _note(mark: str) -> str:
    return f" ({mark})" if mark else ""


def question_text(name: str, asked: ResumeCheck) -> str:
    legend = "✗ breaks exactness. " if asked.grounds else ""
    return "\n".join(
        [
            f"{name}: {asked.claim}{':' if asked.changes else '.'}",
            *([diff_text(asked)] if asked.changes else []),
            f"{legend}{asked.question}",
        ]
    )


async def resume_run(
    app: App[None], client: Client, record: JobRecord, *, from_step: int | None = None
) -> JobRecord | None:
    """Queue an ended job again; asks first when its job file no longer is what the run was begun with. None when it was
    not queued. Call it from a worker."""
    try:
        asked = await client.resume_check(record.id)
        ask = asked.verdict == "ask"  # when it is impossible no yes could help: the refusal says why
        if ask and not await app.push_screen_wait(Confirm(question_text(record.name, asked), "Go on", "Leave it")):
            return None
        queued = await client.resume(record.id, from_step, asked.digest if ask else None)
    except DaemonError as e:
        app.notify(str(e), severity="error", timeout=10)
        return None
    changes = f"\nChanged in its job file:\n{diff_text(asked)}" if asked.changes else ""
    app.notify(
        f"{record.name} is queued again{f', from step {from_step}' if from_step is not None else ''}.{changes}",
        timeout=8 if changes else 5,
    )
    return queued

"""Going on with a run from the screens: how its job file has changed is shown, and what breaks exactness is asked about."""

from textual.app import App

from daemon.client import Client, DaemonError
from daemon.protocol import JobRecord
from presets.changes import Change, breaking, digest
from wanlora_tui.screens.confirm import Confirm

LINES = 6  # of a diff that a question has room for in 24 rows


def diff_text(found: list[Change]) -> str:
    """The changes line by line, those that break exactness first."""
    lines = [f"{'✗' if c.breaks else '●'} {c.text}" for c in sorted(found, key=lambda c: not c.breaks)]
    return "\n".join(lines[:LINES] + ([f"and {len(lines) - LINES} more"] if len(lines) > LINES else []))


async def resume_run(app: App[None], client: Client, record: JobRecord, *, from_step: int | None = None) -> JobRecord | None:
    """Queue an ended job again; asks first when its job file no longer is what the run was begun with. None when it was not queued. Call it from a worker."""
    try:
        found = await client.changes(record.id)
        wrong = breaking(found)
        if wrong and not any(c.impossible for c in wrong):  # to those no yes could help: the refusal says why
            question = f"The job file of {record.name} has changed:\n{diff_text(found)}\n✗ breaks exactness: from here on it would not be the run that was begun. Go on with the changes?"
            if not await app.push_screen_wait(Confirm(question, "Go on", "Leave it")):
                return None
        queued = await client.resume(record.id, from_step, digest(wrong) if wrong else None)
    except DaemonError as e:
        app.notify(str(e), severity="error", timeout=10)
        return None
    told = f"\nChanged in its job file:\n{diff_text(found)}" if found else ""
    app.notify(f"{record.name} is queued again{f', from step {from_step}' if from_step is not None else ''}.{told}", timeout=8 if told else 5)
    return queued

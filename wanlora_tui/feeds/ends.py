"""Which jobs have come to their end since somebody began to look, and what is said of a job on leaving."""

from collections.abc import Collection

from daemon.wire.protocol import ENDED_STATES, LIVE_STATES, JobRecord
from presets.runs.run_view import RunView
from presets.text import to_type
from wanlora_tui.output.formatting import ending

TOLD = frozenset({"done", "failed"})  # stopped and cancelled is what a user does


class Ends:
    """Remembers the states of jobs. A job that had ended before it was first seen is no news."""

    def __init__(self) -> None:
        self._states: dict[int, str] = {}

    def fresh(self, records: Collection[JobRecord]) -> list[JobRecord]:
        """Those that have ended since the last call, each once for each of its attempts."""
        ended = [r for r in records if r.state in TOLD and self._states.get(r.id) in LIVE_STATES]
        self._states.update({r.id: r.state for r in records})
        return ended


def parting(record: JobRecord, view: RunView, host: str) -> list[str]:
    """What to say about a job on the way out. A run that has said it is done may have a process that is still
    closing."""
    if view.state == "done" and record.state in LIVE_STATES and view.attempt == record.attempt:
        return [f"{record.name}: done."]
    if record.state in ENDED_STATES:
        return [ending(record.name, record.state, record.outcome)]
    does = "waits in the queue" if record.state == "queued" else "keeps training"
    back = to_type("attach", record.name, f"--host {host}" if host else "")
    return [f"{record.name} {does}. Come back with: {back}"]

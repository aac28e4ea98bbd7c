"""From a written job file to an accepted job: the daemon is found, or started, and asked.

The daemon is started by daemon.wire.start; what is shown meanwhile is wanlora_tui.screens.wizard.submitting's.
"""

import asyncio
import shlex
from collections.abc import Callable
from pathlib import Path

from daemon.errors import DaemonError, NotRunning
from daemon.settings import settings_file
from daemon.wire.client import Client
from daemon.wire.protocol import JobRecord, PlannedTime
from daemon.wire.start import ensure_running
from wanlora_tui.feeds.job_list import JobList


class Unanswered(DaemonError):
    """The job was sent and no answer came: the daemon may still take it."""


class Submitter:
    """What the wizard knows of the daemon."""

    def __init__(self, client: Client, dir: Path | None, job_list: JobList) -> None:
        self._client, self._dir, self._job_list = client, dir, job_list

    @property
    def settings(self) -> Path:
        """The settings of the daemon that is asked."""
        return settings_file(self._dir)

    async def submit(
        self,
        path: Path,
        *,
        sent_before: float = 0.0,
        planned: PlannedTime | None = None,
        say: Callable[[str], None],
    ) -> JobRecord:
        """Hand in a job file; `say` gets what is waited for.

        `planned`: what the run is expected to take, as its user was told.

        `sent_before`: when this very file was sent and no answer came, seconds since 1970; a job that came of it is
        given. Raises UserError and OSError for what keeps the daemon from coming up or the job from being taken, and
        Unanswered.
        """
        say("Looking for the daemon; it is started if none runs …")
        await asyncio.to_thread(ensure_running, self._dir)
        say("The daemon is there. Handing in the job …")
        if sent_before and (taken := _taken(await self._client.jobs(), path, sent_before)):
            return taken
        try:
            return await self._client.submit(path, planned=planned)
        except NotRunning as e:
            raise Unanswered(
                e.what,
                fix="It may still take the job when it continues: look at the list of jobs before you launch again",
            ) from None

    def taken(self, path: Path, since: float) -> JobRecord | None:
        """The job that came of a file sent at `since`, as far as is known here."""
        return _taken(list(self._job_list.records.values()), path, since)

    def command(self, path: Path) -> str:
        """What hands in the file from a shell."""
        return shlex.join(["wanlora", "submit", str(path), *(["--dir", str(self._dir)] if self._dir else [])])


def _taken(records: list[JobRecord], path: Path, since: float) -> JobRecord | None:
    sent = (str(path), str(path.resolve()))
    return max((r for r in records if r.job_path in sent and r.submitted_at >= since), key=lambda r: r.id, default=None)

"""How jobs come into the list by way of others: a copy that is changed in the wizard, and job files that lie here.

What a copy takes over is wanlora_tui.draft.from_job's.
"""

import asyncio
import os
from pathlib import Path

from textual import work

from daemon.errors import DaemonError
from presets.errors import UserError
from presets.job.schema import Job
from wanlora_tui.screens.jobs.requests import JobRequests


class JobCopies(JobRequests):
    """Imports what it shows when that is asked for: the list of jobs stands before that."""

    @work
    async def action_duplicate_job(self) -> None:
        """The wizard with a copy of the job: all its values, a name of its own."""
        record = self._current()
        if record is not None:
            from wanlora_tui.draft.from_job import job_of_run

            try:
                run_dir, job_path = Path(record.run_dir), Path(record.job_path)
                with self.coming():
                    job = await asyncio.to_thread(job_of_run, run_dir, job_path)
                    name = record.file_name or record.run_name or record.name
                    await self._open_copy(job, name, job_path.parent, copy_of=record.name)
            except (UserError, OSError) as e:
                self.notify(str(e), title=f"{record.name} cannot be copied", severity="error", timeout=10)

    async def _open_copy(self, job: Job, name: str, folder: Path, *, copy_of: str) -> None:
        """`name`: the next free one is the copy's. `copy_of`: what the wizard calls the job."""
        from wanlora_tui.draft.from_job import draft_of, next_name

        taken = {n for r in self._job_list.records.values() for n in (r.name, r.run_name, r.file_name)}
        taken |= {path.stem for path in folder.glob("*.toml")} | {path.name for path in (folder / "runs").glob("*")}
        writable = folder if folder.is_dir() and os.access(folder, os.W_OK) else None
        draft = draft_of(job, name=next_name(name, taken), copy_of=copy_of, folder=writable)
        self.app.open_wizard(draft)  # type: ignore[attr-defined]
        await asyncio.sleep(0)  # it is opened by a worker

    @work
    async def action_submit_file(self) -> None:
        """A job file that lies here: chosen, looked over, then queued or opened."""
        from wanlora_tui.draft.from_job import job_at
        from wanlora_tui.screens.jobs.job_file import JobFileScreen
        from wanlora_tui.widgets.folder_picker import PathPicker

        chosen = await self.app.push_screen_wait(
            PathPicker(Path.cwd(), title="Job file to submit", suffixes=frozenset({".toml"}))
        )
        if chosen is None:
            return
        path = Path(chosen)
        answer = await self.app.push_screen_wait(JobFileScreen(path, daemon_answers=self.daemon_answers))
        try:
            if answer == "submit":
                record = await self._client.submit(path)
                self.notify(f"{record.name} is queued.")
                self.go_to(record)
            elif answer == "wizard":
                with self.coming():
                    job = await asyncio.to_thread(job_at, path)
                    await self._open_copy(job, job.job.name, path.parent, copy_of=path.name)
        except (DaemonError, UserError, OSError) as e:
            self.notify(str(e), title=path.name, severity="error", timeout=15)

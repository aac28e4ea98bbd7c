"""A run folder as it lies here, whoever wrote it: its job, and what its events add up to."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from presets.errors import UserError
from presets.files import open_regular
from presets.job.resume_check import JOB_FILE
from presets.job.schema import Job
from presets.job.toml_file import load_job
from presets.runs.event_data import QuickLine, data_of, quick_line
from presets.runs.events import EVENTS_FILE, Event, decode_event
from presets.runs.run_view import RunView, apply_all


class StoredRun(NamedTuple):
    folder: Path
    job: Job
    view: RunView
    damaged: int  # lines of events that could not be read


def read_run(folder: Path) -> StoredRun:
    """Raises UserError where no run lies here, or one whose files cannot be read."""
    if not folder.is_dir():
        raise UserError("there is no such run folder", where=str(folder), fix="Name a run folder, or a job")
    damaged: list[int] = []
    view = RunView()
    try:
        apply_all(view, _events(folder / EVENTS_FILE, damaged))
    except FileNotFoundError:
        raise UserError(
            f"no run lies here: it has no {EVENTS_FILE}", where=str(folder), fix="Name a run folder, or a job"
        ) from None
    except OSError as e:
        raise UserError(f"cannot be read: {e.strerror or e}", where=str(folder / EVENTS_FILE)) from None
    if not (folder / JOB_FILE).exists():
        raise UserError("its job was never accepted, so there is nothing to see", where=str(folder))
    return StoredRun(folder, load_job(folder / JOB_FILE), view, len(damaged))


def _events(path: Path, damaged: list[int]) -> Iterator[Event | QuickLine]:
    """Of whole lines; those that hold no event are passed over, and their numbers put into `damaged`, as the daemon
    passes over them."""
    with open_regular(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):  # torn, or still being written
                return
            try:
                yield quick_line(line)
            except (ValueError, KeyError):
                try:
                    event = decode_event(line)
                    data_of(event)
                except (ValueError, KeyError, RecursionError):
                    damaged.append(number)
                else:
                    yield event


def inside(folder: Path, name: str) -> Path | None:
    """A file of a run that an event names, when it is there, a file, and lies in the run folder wherever links lead:
    events may come from elsewhere."""
    try:
        path = (folder / name).resolve()
        return path if path.is_relative_to(folder.resolve()) and path.is_file() else None
    except (OSError, ValueError, RuntimeError):
        return None

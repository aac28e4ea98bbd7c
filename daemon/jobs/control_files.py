"""A run folder before its trainer starts, and commands to a running one: control files, which engine.runfolder.control
reads between micro-batches and deletes when they are applied."""

import hashlib
import time
from pathlib import Path

import msgspec

from presets.atomic_file import write_file
from presets.errors import UserError
from presets.files import read_regular, require_own
from presets.job.resume_check import JOB_FILE
from presets.job.toml_file import dump_job, load_job, with_value
from presets.runs.control import CONTROL_DIR, TrainerCommand, parse_control
from presets.runs.run_folder import require_no_links

MAX_COMMAND_BYTES = 2**16


def write_command(run_dir: Path, command_id: str, command: TrainerCommand) -> None:
    """Leave a command, whole or not at all. Names sort by time, so that the trainer takes commands as they were given;
    one of the same id changes nothing while the first lies there. Raises OSError.
    """
    control = run_dir / CONTROL_DIR
    require_own(control)
    mark = hashlib.sha256(command_id.encode()).hexdigest()[:16]
    if any(control.glob(f"*-{mark}.json")):
        return
    content = msgspec.json.encode(msgspec.structs.replace(command, id=command_id))
    write_file(control / f"{time.time_ns():020d}-{mark}.json", content)


def prepare(run_dir: Path) -> bool:
    """Make a run folder ready for the next attempt. Whether a run lies there already. Raises OSError."""
    require_no_links(run_dir)
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    forget_stops(run_dir)
    return (run_dir / JOB_FILE).exists()


def name_run(copy: Path, name: str) -> None:
    """Have the daemon's copy of a job file, which the trainer is given, say what the run is called. Raises OSError and
    UserError."""
    job = load_job(copy)
    if job.job.name != name:
        write_file(copy, dump_job(with_value(job, "job.name", name)).encode(), sync=True)


def forget_stops(run_dir: Path) -> None:
    """Remove stops that were meant for an attempt which has ended. Other commands wait for the next attempt. Raises
    OSError."""
    for file in (run_dir / CONTROL_DIR).glob("*.json"):
        try:
            command = parse_control(read_regular(file, MAX_COMMAND_BYTES))
        except (UserError, OSError):  # the trainer refuses it, and says so
            continue
        if command.command == "stop":
            file.unlink(missing_ok=True)

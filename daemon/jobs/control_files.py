"""A run folder before its trainer starts, and commands to a running one: control files, which it reads between
micro-batches and deletes when it has applied them. What is in them is presets.runs.control's."""

import hashlib
import time
from pathlib import Path

import msgspec

from presets.errors import UserError
from presets.files import read_regular
from presets.job.resume_check import JOB_FILE
from presets.runs.control import CONTROL_DIR, ControlFile, parse_control

MAX_COMMAND_BYTES = 2**16


def write_command(run_dir: Path, request: str, order: ControlFile) -> None:
    """Leave a command, whole or not at all. Names sort by time, so that the trainer takes commands as they were given;
    the same request again changes nothing while its command lies there. Raises OSError.
    """
    control = run_dir / CONTROL_DIR
    control.mkdir(parents=True, exist_ok=True)
    mark = hashlib.sha256(request.encode()).hexdigest()[:16]
    if any(control.glob(f"*-{mark}.json")):
        return
    draft = control / f"{mark}.tmp"
    draft.write_bytes(msgspec.json.encode(msgspec.structs.replace(order, id=request)))
    draft.replace(control / f"{time.time_ns():020d}-{mark}.json")


def prepare(run_dir: Path) -> bool:
    """Make a run folder ready for the next attempt. Whether a run lies there already. Raises OSError."""
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    forget_stops(run_dir)
    return (run_dir / JOB_FILE).exists()


def forget_stops(run_dir: Path) -> None:
    """Remove stops that were meant for an earlier attempt. Other commands wait for the next attempt. Raises
    OSError."""
    for file in (run_dir / CONTROL_DIR).glob("*.json"):
        try:
            found = parse_control(read_regular(file, MAX_COMMAND_BYTES))
        except (UserError, OSError):  # the trainer refuses it, and says so
            continue
        if found.command == "stop":
            file.unlink(missing_ok=True)

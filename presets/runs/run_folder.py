"""The places in a run folder that are written to. What lies there is said elsewhere: events in presets.runs.events,
checkpoints in presets.runs.checkpoints, commands in presets.runs.control."""

import errno
import os
import shlex
import stat
from pathlib import Path

from presets.files import open_own, read_regular, require_own
from presets.job.resume_check import JOB_FILE
from presets.runs.control import CONTROL_DIR
from presets.runs.events import EVENTS_FILE
from presets.runs.run_view import ABANDONED

LOCK_FILE, RESERVE_FILE = ".lock", ".reserve"
PAGE_FILE = "report.html"  # to be read when all is over: presets.report.page
STEPS = ("checkpoints", "samples")  # a folder for each step
OF_RUN = ".wanlora-run"  # in a folder that a run uses through a link: the run folder's path
MAX_PATH_BYTES = 2**13
FOLDERS = (*STEPS, "logs", CONTROL_DIR, ABANDONED)


def require_no_links(run_dir: Path) -> None:
    """Raises OSError that names the first link in place of what a run writes: a run folder that others could write to,
    or that came from elsewhere, must not lead us into other folders. The run folder itself may lie behind one, and
    checkpoints and samples on another disk, in a folder that is this run's alone."""
    for name in (EVENTS_FILE, JOB_FILE, LOCK_FILE, RESERVE_FILE, *FOLDERS):
        if name not in STEPS:
            require_own(run_dir / name)
        elif (run_dir / name).is_symlink():
            _require_for_itself(run_dir / name)
    for name in STEPS:
        if (run_dir / name).is_dir():
            for entry in os.scandir(run_dir / name):
                require_own(Path(entry.path))


def _require_for_itself(link: Path) -> None:
    """Raises OSError unless a link in a run folder leads to a folder of the user's own that is this run's alone. What
    is removed there must be this run's: the folder says so itself, since it was empty when the run began to use it."""

    def refusal(why: str) -> OSError:
        return OSError(errno.ELOOP, f"it is a link{why}", str(link))

    target, run = Path(os.path.realpath(link)), os.path.realpath(link.parent)
    try:
        facts = link.stat()
    except OSError:
        raise refusal(f" to {target}, which is not there: make that folder, or remove the link") from None
    if not stat.S_ISDIR(facts.st_mode):
        raise refusal(", and what is written there must not go elsewhere: remove it")
    if {facts.st_uid, link.lstat().st_uid} != {os.geteuid()} or facts.st_mode & 0o022:
        raise refusal(f" to {target}, which must be your own, as the link, and nobody else's to write to: chmod go-w")
    says = target / OF_RUN
    if os.path.lexists(says):
        of = read_regular(says, MAX_PATH_BYTES).decode(errors="replace").strip()
        if says.is_symlink() or of != run:
            raise refusal(f" to {target}, which is of another run ({of}): link an empty folder, or mend {OF_RUN} in it")
        return
    if any(target.iterdir()):
        raise refusal(
            f" to {target}, where something is already. If that is this run's, say so:"
            f" printf %s {shlex.quote(run)} > {shlex.quote(str(says))}"
        )
    with open_own(says) as f:
        f.write(os.fsencode(run))

"""Why the disk of the daemon's state takes nothing, in words that say what to do: it is full, read-only, not ours."""

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

from presets.disk import existing_parent, require_room
from presets.errors import UserError
from presets.text import human

PROBE_BYTES = 2**16  # a change of the table needs less
ENOUGH = "1 MiB"
LIMIT = "ulimit -f"


def why_not_writable(place: Path) -> str:
    """ "" when something can be written there by now: it is tried."""
    try:
        require_room(place, PROBE_BYTES)
    except OSError as e:
        return reason(e, place)
    return ""


def reason(error: OSError, place: Path) -> str:
    """Why a disk has refused a write."""
    disk = f"the disk of {place}"
    if error.errno == errno.EDQUOT:
        return f"your quota on {disk} is used up"
    if error.errno == errno.EFBIG:
        return f"no file in {place} may grow: {LIMIT}"
    if error.errno == errno.ENOSPC:
        free = ""
        with suppress(OSError):
            free = f" ({human(shutil.disk_usage(existing_parent(place)).free)} are free)"
        return f"{disk} is full{free}"
    if error.errno == errno.EROFS:
        return f"{disk} is read-only"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"you may not write to {place}"
    return f"{disk} takes nothing: {os.strerror(error.errno or 0).lower()}"


def mend(why: str, place: Path) -> str:
    """What to do about it."""
    if why.endswith(LIMIT):
        return f"Raise the limit of files ({LIMIT})"
    return f"Free at least {ENOUGH} in {place}" if " is full" in why or "quota on" in why else f"Make {place} writable"


def refusal(why: str, place: Path) -> UserError:
    """For a request whose acceptance must be on the disk before it counts."""
    return UserError(
        f"nothing can be accepted while {why}",
        where=str(place),
        fix=(
            f"{mend(why, place)} and try again: what runs goes on meanwhile. Or hand the job to a daemon that keeps its"
            " state on another disk: wanlora submit JOB --dir DIRECTORY"
        ),
    )

"""What a client is told of a request that failed: the user's own mistakes, and disks that take or give nothing."""

import errno
import logging
import sqlite3
from pathlib import Path

from daemon.table.state_disk import reason, refusal, why_not_writable
from daemon.wire.protocol import Refused
from presets.errors import JobError, UserError
from presets.findings import of_job_error

log = logging.getLogger("daemon")

OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM)

Failure = UserError | OSError | sqlite3.Error


def refused(failure: Failure, state: Path) -> Refused:
    """`state`: the daemon's folder, whose disk is meant where the failure names no other."""
    match failure:
        case JobError():
            return Refused(str(failure), findings=of_job_error(failure))
        case UserError(what=what, where=where, fix=fix):
            return Refused(f"{where}: {what}" if where else what, fix)
    if not isinstance(failure, OSError) or failure.errno != errno.ENAMETOOLONG:
        log.error("request failed", exc_info=failure)
    if isinstance(failure, sqlite3.Error):
        if why := why_not_writable(state):
            full = refusal(why, state)
            return Refused(full.what, full.fix)
        return Refused(f"the daemon could not do it: {failure}", f"Check the disk of {state}")
    place = failure.filename or state
    if failure.errno == errno.ENAMETOOLONG:
        return Refused(f"{str(place)[:100]}...: it is too long for the name of a file", "Give a shorter one")
    if failure.errno in OF_THE_DISK:
        return Refused(
            f"{place}: it cannot be done while {reason(failure, Path(place))}",
            "Make room there, or make it writable, and try again",
        )
    return Refused(f"the daemon could not do it: {failure}", f"Check the disk of {place}")

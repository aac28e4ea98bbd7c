"""How many files and connections this process may have open: as many as the system lets it, and its trainers as many as
they would have without it."""

import logging
import resource

log = logging.getLogger("daemon")

_before: tuple[int, int] | None = None  # (soft, hard) as we were started


def raise_limit() -> None:
    """Raise the soft limit to the hard one."""
    global _before
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    _before = soft, hard
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as e:  # a system that has a lower limit of its own
        log.info("the limit of open files stays at %d: %s", soft, e)


def give_back(pid: int) -> None:
    """Have another process continue with the limit that we were started with: some programs walk through all
    descriptors that they could have, or take no higher one than 1023."""
    if _before is not None:
        try:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, _before)
        except (OSError, ValueError) as e:
            log.info("process %d keeps the higher limit of open files: %s", pid, e)

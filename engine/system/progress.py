"""How work that takes a while says how far it is, and what went wrong without ending it. What a user sees of it is an
event of the run (engine.runfolder.event_log) or a line of a command."""

import time
from collections.abc import Callable

Progress = Callable[[int, int, str], None]  # done, of how many, what is done; may raise, which ends the work
Warn = Callable[[str], None]  # what a user should know of, although the work goes its way


def seldom(progress: Progress) -> Progress:
    """The same, at most five times a second but for the end: an event for each of ten thousand images helps nobody."""
    last = 0.0

    def said(done: int, total: int, what: str) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > 0.2:
            last = time.monotonic()
            progress(done, total, what)

    return said

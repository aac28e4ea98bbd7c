"""The standard streams: whether they are terminals, how wide, and whether the screens can be drawn on them.

What a terminal answers to questions is wanlora_tui.terminal.conversation's.
"""

import os
import sys
from typing import TextIO


def is_terminal(stream: object) -> bool:
    """Whether one of Python's standard streams is a terminal. It is None where the program was started with it
    closed."""
    return stream is not None and bool(getattr(stream, "isatty")())  # noqa: B009


def can_draw() -> bool:
    """Whether the screens can be drawn here: a terminal on both sides, one that can move its cursor, and an encoding
    that has their signs."""
    return is_terminal(sys.stdin) and is_terminal(sys.stdout) and not is_dumb() and has_signs(sys.stdout)


def has_signs(stream: TextIO) -> bool:
    """Whether the encoding of a stream has the signs that the screens are made of: lines, blocks, dots."""
    try:
        "│▄●⣿".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def is_dumb() -> bool:
    """Whether the terminal can do no more than print lines."""
    return os.environ.get("TERM", "") in ("", "dumb")


def is_colourless() -> bool:
    """Whether the screens are drawn without colour: Textual takes an empty NO_COLOR, too."""
    return "NO_COLOR" in os.environ


def has_all_colours() -> bool:
    """Whether colours arrive at the terminal as they are drawn: elsewhere they become the nearest of 256 or fewer."""
    named = os.environ.get("COLORTERM", "").strip().lower()  # all that Rich and Textual go by
    return not is_colourless() and named in ("truecolor", "24bit")


def has_shell() -> bool:
    """Whether a shell would see this command stop and could continue it: the parent of its process group is in the
    same session, but another job."""
    import psutil  # 20 ms, which every command would pay

    try:
        parent = psutil.Process(os.getpgrp()).ppid()
        return os.getsid(parent) == os.getsid(0) and os.getpgid(parent) != os.getpgrp()
    except (psutil.NoSuchProcess, ProcessLookupError, PermissionError):
        return False


def terminal_width(stream: TextIO) -> int:
    """The columns of the terminal that the stream writes to; 0 where it is none. One that reports no size has 80."""
    if not is_terminal(stream):
        return 0
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return int(columns)
    return os.get_terminal_size(stream.fileno()).columns or 80

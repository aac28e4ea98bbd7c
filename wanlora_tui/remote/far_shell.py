"""Command lines for the login shell of another machine, whichever it is and whatever its start files print."""

import re
import shlex
import uuid
from collections.abc import Sequence

_UNSAFE = re.compile(r"[^A-Za-z0-9_./=:,@+ -]")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def for_any_shell(script: str) -> str:
    """A line that sh, bash, zsh, csh and fish all hand to /bin/sh as the script it was: within single quotes they only
    agree about letters, digits and a few signs, so the rest is written as numbers."""
    safe = _UNSAFE.sub(lambda sign: "".join(f"\\0{byte:03o}" for byte in sign[0].encode()), script)
    return f'exec /bin/sh -c \'eval "$(printf %b "{safe}")"\''


def new_mark() -> str:
    """A line that stands in no other output."""
    return f"wanlora-{uuid.uuid4().hex}"


def marked(script: str, mark: str) -> str:
    """The script, with the mark on a line of its own on stdout and stderr before it: what stands before that is of the
    shell's start files."""
    return f"printf '\\n%s\\n' {mark}; printf '\\n%s\\n' {mark} >&2; {script}"


def after_mark(said: str, mark: str) -> str:
    """What stands behind the mark; all of it when there is none."""
    before, found, after = said.partition(f"{mark}\n")
    return after if found else before


def running(argv: Sequence[str]) -> str:
    """The script that becomes a program."""
    return f"exec {shlex.join(argv)}"


def harmless(text: str) -> str:
    """Foreign text as it may be drawn and printed: no control characters but tabs and line ends."""
    return _CONTROLS.sub("", text.replace("\r", ""))


def last_line(text: str) -> str:
    """The last line that says something."""
    return harmless(text).strip().rpartition("\n")[2].strip()

"""Paths as people type and paste them: understood, resolved, and completed as a shell does.

The input field that completes them is wanlora_tui.widgets.folder_picker's.
"""

import re
import shlex
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from presets.file_names import expanded, is_utf8


def meant(text: str, base: Path) -> str:
    """The path in what was typed or pasted, as it is written in a job: `~` and a path relative to `base` stay so.

    Terminals paste a file that is dragged into them as a shell would need it: in quotes, with blanks and quotes behind
    backslashes, as a `file://` URL, and with a blank or a line break behind it. A name that really has such characters
    is taken as it stands, where there is such a file, or the folder that it would be in.
    """
    bare = text.strip()
    plain = _unquoted(bare)
    if plain == text:  # nearly always, and then no disk is asked
        return text
    there = next((given for given in (text, bare) if given and _is_so(at(given, base).exists)), None)
    if there is not None:
        return there
    return next((given for given in (plain, bare, text) if _is_so(at(given, base).parent.is_dir)), plain)


def _is_so(question: Callable[[], bool]) -> bool:
    """What cannot be looked at, such as a name that is too long, is not there."""
    try:
        return question()
    except OSError:
        return False


def at(path: str, base: Path) -> Path:
    """Where a path of a job lies."""
    return base / expanded(path)


def absolute(text: str, base: Path) -> Path:
    """The path a user typed: `~` and paths relative to `base` resolved, without following links."""
    path = at(meant(text, base) or ".", base)
    return path if ".." not in path.parts else path.resolve()


def _unquoted(text: str) -> str:
    """`text` without what a shell or a URL needs around a path."""
    if text.startswith("file://"):
        return _of_url(text)
    if text[:1] in ("'", '"'):
        try:
            words = shlex.split(text)
        except ValueError:  # the closing quote is still to be typed
            return text
        return words[0] if len(words) == 1 else text
    return re.sub(r"\\(.)", r"\1", text)


def _of_url(text: str) -> str:
    host, slash, path = text.removeprefix("file://").partition("/")
    try:
        path = unquote(slash + path, errors="strict")
    except UnicodeDecodeError:  # no job can name it
        return text
    return path if path and "\0" not in path and host in ("", "localhost", socket.gethostname()) else text


def complete_path(text: str, base: Path, suffixes: frozenset[str] | None) -> str | None:
    """The path in `text` with its last part completed to the first entry that fits; folders end in a slash. None:
    nothing fits.

    Folders only when `suffixes` is None, otherwise folders and files of these suffixes (lower case, with the dot).
    """
    head, slash, start = meant(text, base).rpartition("/")
    if not start or start == "~":
        return None
    try:
        folder = at(head + slash, base) if slash else base
        entries = sorted(folder.iterdir())
        for entry in entries:
            if not is_utf8(entry.name):  # no job can name it; the tree of the picker shows it, and says so
                continue
            if not entry.name.startswith(start) or (entry.name.startswith(".") and not start.startswith(".")):
                continue
            if entry.is_dir():
                return f"{head}{slash}{entry.name}/"
            if suffixes is not None and entry.suffix.lower() in suffixes:
                return f"{head}{slash}{entry.name}"
    except OSError:  # an unreadable folder completes to nothing
        return None
    return None


def write_problem(path: Path) -> str:
    """Why no file can be written there; "" when one can."""
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if path.is_dir():
        return f"{path} is a folder: add a file name"
    if not folder.is_dir():
        return f"{folder} is a file, not a folder"
    try:
        with tempfile.TemporaryFile(dir=folder):  # permission bits lie on read-only disks and for root
            return ""
    except OSError as e:
        return f"nothing can be written in {folder} ({(e.strerror or str(e)).lower()}): choose another place"

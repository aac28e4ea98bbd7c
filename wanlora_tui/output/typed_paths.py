"""Paths as people type them: resolved, and completed as a shell does.

The input field that completes them is wanlora_tui.widgets.folder_picker's.
"""

import tempfile
from pathlib import Path

from presets.file_names import is_utf8


def absolute(text: str, base: Path) -> Path:
    """The path a user typed: `~` and paths relative to `base` resolved, without following links."""
    path = Path(text.strip() or ".").expanduser()
    return Path(*(base / path).parts) if ".." not in path.parts else (base / path).resolve()


def complete_path(text: str, base: Path, suffixes: frozenset[str] | None) -> str | None:
    """`text` with its last part completed to the first entry that fits; folders end in a slash. None: nothing fits.

    Folders only when `suffixes` is None, otherwise folders and files of these suffixes (lower case, with the dot).
    """
    head, slash, start = text.rpartition("/")
    if not start or start == "~":
        return None
    try:
        folder = (base / Path(head + slash).expanduser()) if slash else base
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
    except (OSError, RuntimeError):  # an unreadable folder or an unknown ~user completes to nothing
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

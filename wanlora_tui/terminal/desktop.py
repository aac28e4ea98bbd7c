"""The desktop that the terminal stands on, if it does: its file manager can be asked to show a folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path


def can_open() -> bool:
    """Whether there is a desktop, and it is the user's: over SSH a window would open before nobody."""
    return bool(_opener())


def open_folder(folder: Path) -> str:
    """Have it shown; gives what is wrong, "" when it was asked for. Does not wait for the window."""
    if not folder.is_dir():
        return f"There is no folder {folder} yet"
    try:
        subprocess.Popen(
            [_opener(), str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as e:
        return f"The folder cannot be shown: {e.strerror or e}"
    return ""


def _opener() -> str:
    if "SSH_CONNECTION" in os.environ or "SSH_TTY" in os.environ:
        return ""
    if sys.platform == "darwin":
        return shutil.which("open") or ""
    display = "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    return (shutil.which("xdg-open") or "") if display else ""

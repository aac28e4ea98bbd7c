"""Where a file that another machine names may be written here: inside the folder that its user chose, and nowhere
else."""

import os
import stat
import unicodedata
from pathlib import Path

from presets.errors import UserError

MAX_NAME_BYTES, MAX_PATH_BYTES = 240, 3000  # with room for what ends the name of an unfinished file


class UnsafeName(UserError):
    """A name that nothing is written to."""


def place(folder: Path, name: str) -> Path:
    """The path of `name`, relative and from another machine, below `folder`. Makes nothing.

    Raises UnsafeName for whatever could lead out of the folder or deceive on a terminal: absolute, with `..`, with
    control or invisible characters, too long, or through a link that lies here.
    """
    if reason := _why_unsafe(name):
        raise UnsafeName(f"the other machine names a file {ascii(name)[:200]}, {reason}", fix="It was not fetched")
    at = folder
    for part in name.split("/"):
        at = at / part
        try:
            if stat.S_ISLNK(at.lstat().st_mode):
                raise UnsafeName("is a link, and nothing is written through links", where=str(at), fix="Remove it")
        except FileNotFoundError:
            continue
        except NotADirectoryError:
            raise UnsafeName("a file is where a folder is needed", where=str(at.parent), fix="Remove it") from None
    return at


def is_hidden(name: str) -> bool:
    """Whether it begins in what programs keep for themselves in a home folder: .ssh, .bashrc. A run has nothing there
    that is worth a copy."""
    first = name.partition("/")[0]
    return first.startswith(".") and first not in (".", "..")


def folder_named(name: str) -> Path:
    """A folder in the working directory for what belongs to `name`, which is from another machine. Raises
    UnsafeName."""
    if "/" in name or is_hidden(name):
        raise UnsafeName(f"{ascii(name)[:200]} is no name of a folder", fix="Name the folder with --to")
    return place(Path(), name)


def _why_unsafe(name: str) -> str:
    parts = name.split("/")
    if any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in name):
        return "with a control character or an invisible one"
    if name.startswith("/"):
        return "an absolute path"
    if ".." in parts:
        return "which leads out of the folder"
    if "" in parts or "." in parts:
        return "which is no plain path"
    if len(os.fsencode(name)) > MAX_PATH_BYTES or any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in parts):
        return "which is too long"
    return ""

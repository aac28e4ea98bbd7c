"""Names of files as people write them, with `~`, and as old disks, archives and other systems leave them: not UTF-8.
Nothing that is stored or sent can hold one of these.

Python reads the odd bytes of such a name as lone surrogates (PEP 383), which no encoder takes.
"""

import os
import shlex
from pathlib import Path

from presets.errors import UserError
from presets.text import escaped


def expanded(path: str | Path) -> Path:
    """A path as people write it, with their home for `~`. `~` of an unknown user is a name like any other."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def require_home() -> None:
    """Raises UserError where nothing says which folder is the user's home, as in a container for a uid that it does not
    know."""
    try:
        Path.home()
    except RuntimeError:
        raise UserError(
            f"HOME is not set, and this system knows no home folder of the user with uid {os.getuid()}",
            fix="Set it to a folder of your own, for instance: export HOME=/workspace",
        ) from None


def is_utf8(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def require_utf8(path: Path) -> None:
    """Raises UserError where a folder on the way to `path`, or the file itself, has a name that is not UTF-8."""
    whole, real = path.absolute(), Path(os.path.realpath(path))  # what is stored is where links lead
    for part in (*reversed(whole.parents), whole, *reversed(real.parents), real):
        if not is_utf8(part.name):
            raise UserError(f"the name {escaped(part.name)} is not UTF-8", where=escaped(str(path)), fix=advice(part))


def advice(path: Path) -> str:
    return f"Give it another name, in bash: {rename_command(path)}"


def rename_command(path: Path) -> str:
    """What to type in bash to give a file or folder a name that is UTF-8: the one it had if it was written as most
    Western systems did."""
    raw = path.name.encode("utf-8", "surrogateescape")
    try:
        name = raw.decode("cp1252")
    except UnicodeDecodeError:
        name = raw.decode("utf-8", "replace")
    better = "".join("_" if letter == "\ufffd" or not letter.isprintable() else letter for letter in name)
    return f"mv -n -- {_quoted(str(path))} {_quoted(str(path.with_name(better)))}"


def _quoted(text: str) -> str:
    r"""`text` for bash; bytes that are not UTF-8 as $'caf\xe9'."""
    if is_utf8(text):
        return shlex.quote(text)
    letters = text.encode("utf-8", "surrogateescape")
    safe = "".join(chr(b) if 32 <= b < 127 and b not in b"'\\" else f"\\x{b:02x}" for b in letters)
    return f"$'{safe}'"

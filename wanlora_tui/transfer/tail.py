"""The end of a text file that grows, here or on another machine: what a trainer writes is read in pieces of bounded
size.

How it is shown is wanlora_tui.screens.log's.
"""

from pathlib import PurePosixPath

from presets.errors import UserError
from wanlora_tui.transfer.messages import Files

FIRST = 128 * 2**10  # bytes of the end that are read at first
MOST = 2**20  # bytes read at once later; of a file that has grown by more, the end alone
LONGEST = 4000  # characters of a line; progress bars write one that never ends


class TextTail:
    """Follows one path; `read` gives what came since, and whether it begins anew (another file, a shorter one, or one
    that grew by too much). Raises UserError and Cut, as its files do."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._path, self._at, self._rest = "", -1, b""

    def read(self, path: str) -> tuple[list[str], bool]:
        """Whole lines. A file that is not there yet has none."""
        (facts,) = self._files.facts([path])
        if facts.kind == "none":
            anew = self._at >= 0 or path != self._path
            self._path, self._at, self._rest = path, -1, b""
            return [], anew
        if facts.kind != "file":
            raise UserError("is no file", where=path)
        anew = path != self._path or self._at < 0 or facts.size < self._at or facts.size - self._at > MOST
        cut = False
        if anew:
            self._path, self._rest, self._at = path, b"", max(0, facts.size - FIRST)
            cut = self._at > 0
        length = facts.size - self._at
        data = b"".join(self._files.read(path, self._at, length)) if length else b""
        self._at += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST:
            self._rest = self._rest[-LONGEST:]
        lines = [_shown(line) for line in whole]
        return (lines[1:] if cut else lines), anew


def attempt_log(run_dir: str, attempt: int) -> str:
    """Where the daemon has the output of an attempt's trainer written."""
    return str(PurePosixPath(run_dir) / "logs" / f"attempt_{attempt}.log")


def _shown(line: bytes) -> str:
    """Of a line that was written over and over, as progress bars are, what stands there at last."""
    text = line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", "replace")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"

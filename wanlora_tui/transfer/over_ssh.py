"""The way to the files of another machine over the connection to it, which comes back after a cut."""

import errno
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from presets.errors import UserError
from presets.text import human
from wanlora_tui.output.formatting import count
from wanlora_tui.remote.connection import Connection
from wanlora_tui.remote.far_process import LineLost
from wanlora_tui.transfer.channel import FarFiles
from wanlora_tui.transfer.fetching import Fetch
from wanlora_tui.transfer.messages import Cut
from wanlora_tui.transfer.progress import Progress
from wanlora_tui.transfer.retrying import Retrying
from wanlora_tui.transfer.safe_names import folder_named

TELL_SECONDS = 1.0  # between two words of how it gets on


def far_files(there: Connection) -> FarFiles:
    """A channel. Raises Cut; DaemonError where wanlora does not run there."""
    try:
        return FarFiles(there.start([there.wanlora, "serve-files"], stdin=subprocess.PIPE))
    except LineLost as e:
        raise Cut(e.what) from None


class FarPieces:
    """Of files of another machine, for who reads on in one that grows (wanlora_tui.feeds.folder_events). The channel is
    opened when it is first needed, and anew after a cut. It may be closed from any thread."""

    def __init__(self, there: Connection) -> None:
        self._there = there
        self._lock = threading.Lock()  # never held while the other machine is waited for
        self._files: FarFiles | None = None
        self._closed = 0  # how often

    def read(self, path: Path, offset: int, most: int) -> tuple[bytes, int]:
        try:
            files = self._open()
            (facts,) = files.facts([str(path)])
            if facts.kind == "none":
                raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
            length = max(0, min(most, facts.size - offset))
            return b"".join(files.read(str(path), offset, length)), facts.size
        except Cut as e:
            self.close()
            raise ConnectionError(str(e)) from None
        except UserError as e:
            raise OSError(e.what) from None

    def _open(self) -> FarFiles:
        """Raises Cut, also where it was closed meanwhile: nobody would close what has come after that."""
        with self._lock:
            if self._files is not None:
                return self._files
            closed = self._closed
        files = far_files(self._there)
        with self._lock:
            if closed == self._closed:
                self._files = files
                return files
        files.close()
        raise Cut("it was closed while it opened")

    def close(self) -> None:
        with self._lock:
            files, self._files = self._files, None
            self._closed += 1
        if files is not None:
            files.close()


def files_of(there: Connection, say: Callable[[str], None]) -> Retrying[FarFiles]:
    """The same, opened anew as soon as the line is there again. `say` gets a line about each cut."""

    def pause(seconds: float) -> None:
        time.sleep(min(seconds, 1.0))
        there.wait(seconds)

    return Retrying(lambda: far_files(there), say, sleep=pause)


def fetch_newest(there: Connection, run_dir: str, name: str, tell: Callable[[str], None]) -> str:
    """Bring the newest LoRA files of a run into a folder of its name here; says what has come. `tell` gets how it gets
    on. Raises UserError."""
    to = folder_named(name)
    with closing(Fetch(files_of(there, tell), run_dir, to)) as fetch:
        listing = fetch.list("loras")
        if not listing.files:
            raise UserError(f"{name} has no LoRA file yet", fix="The first comes with its first checkpoint")
        total = sum(file.size for file in listing.files)
        fetch.fetch(listing, Progress(total, tell, TELL_SECONDS))
    if fetch.refused:
        raise UserError("; ".join(f"{r.name}: {r.why}" for r in fetch.refused), where=str(to.absolute()))
    names = "\n".join(str(to.absolute() / file.path) for file in listing.files)
    return f"{count(len(listing.files), 'LoRA file')}, {human(total)}:\n{names}"

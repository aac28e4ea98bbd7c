"""Copying files from here to another machine: what is there already stays, what was begun goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from wanlora_tui.transfer.channel import FarFiles
from wanlora_tui.transfer.fetching import digest_so_far, sha256_of
from wanlora_tui.transfer.messages import PART
from wanlora_tui.transfer.progress import Progress
from wanlora_tui.transfer.retrying import Retrying


class ToSend(NamedTuple):
    """A file here and where it goes."""

    here: Path
    there: str

    @property
    def size(self) -> int:
        return self.here.stat().st_size


def send(line: Retrying[FarFiles], files: list[ToSend], progress: Progress, sent: Callable[[ToSend], None]) -> None:
    """Copy them; `sent` is called with each that had to be. Raises UserError where a different file lies there, and
    LostConnection; OSError of what cannot be read here."""
    for file in files:
        size = file.size
        progress.begin(file.here.name)
        if not _is_there(line, file, size):
            _send(line, file, size, progress)
            sent(file)
        progress.end(size)


def _is_there(line: Retrying[FarFiles], file: ToSend, size: int) -> bool:
    (found,) = line.ask(lambda files: files.facts([file.there]))
    if found.kind != "file" or found.size != size:
        return False
    return line.ask(lambda files: files.digest(file.there, size)) == sha256_of(file.here)


def _send(line: Retrying[FarFiles], file: ToSend, size: int, progress: Progress) -> None:
    with file.here.open("rb") as f:

        def rest(files: FarFiles) -> None:
            at = _begun(files, file, size)
            f.seek(at)
            progress.had(at)
            while at < size or at == 0:  # an empty file is written, too
                data = f.read(files.piece)
                files.write(file.there, at, data)
                at += len(data)
                progress.moved(len(data))
                line.moves()
                if not data:
                    break
            f.seek(0)
            files.finish(file.there, digest_so_far(f, size).hexdigest(), file.here.stat().st_mtime_ns)

        line.ask(rest)


def _begun(files: FarFiles, file: ToSend, size: int) -> int:
    """Bytes of it that are there already."""
    (part,) = files.facts([file.there + PART])
    if part.kind != "file" or not 0 < part.size <= size:
        return 0
    with file.here.open("rb") as f:
        same = digest_so_far(f, part.size).hexdigest() == files.digest(file.there + PART, part.size)
    return part.size if same else 0

"""Bringing files of a run here: what is here already is left alone, what was begun goes on, and a file has its own name
only once it is whole and proven.

Unfinished files end in `.part`. What they hold is compared with the file there before they go on, so no note is kept
beside them.
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from presets.errors import UserError
from presets.job.resume_check import JOB_FILE
from presets.report.measures import FILE as MEASURES_FILE
from presets.runs.run_folder import LOCK_FILE, PAGE_FILE, RESERVE_FILE
from presets.text import human
from wanlora_tui.transfer.messages import PART, FileEntry, Files, Gone, Listing, What
from wanlora_tui.transfer.progress import Progress
from wanlora_tui.transfer.retrying import LostConnection, Retrying
from wanlora_tui.transfer.safe_names import is_hidden, place

CHUNK = 2**20  # bytes hashed at once
# What is made anew with each preview, at each end, by `wanlora judge` or by the daemon there: one that is older here is
# no other file of this name
REMADE = re.compile(
    r"samples/(compare_\d+\.(png|mp4)|step_\d+/sheet\.png)"
    rf"|{'|'.join(re.escape(name) for name in (PAGE_FILE, MEASURES_FILE, 'events.fold'))}"
)


class Refused(NamedTuple):
    """A file that was not fetched, and why."""

    name: str
    why: str


class Fetch:
    """One fetch of a run folder into `to`. `arrived` gets the path of each file that is here, and whether it was
    before."""

    def __init__(
        self,
        line: Retrying[Files],
        folder: str,
        to: Path,
        *,
        overwrite: bool = False,
        arrived: Callable[[Path, bool], None] = lambda path, was_here: None,
    ) -> None:
        self._line, self._folder, self._to, self._overwrite = line, folder, to, overwrite
        self._arrived = arrived
        self.refused: list[Refused] = []
        self._another_run = False  # lies here, as far as can be told: a file differs that a run seldom writes twice

    def list(self, what: What, step: int | None = None) -> Listing:
        """What there is; nothing hidden, wherever the files go. Raises UserError."""
        listing = self._line.ask(lambda files: files.list_run(self._folder, what, step))
        hidden = [file.path for file in listing.files if is_hidden(file.path)]
        listing.files = [file for file in listing.files if not is_hidden(file.path)]
        listing.passed_over += [f"{name!r}: a hidden file" for name in hidden if name not in (LOCK_FILE, RESERVE_FILE)]
        return listing

    def fetch(self, listing: Listing, progress: Progress) -> None:
        """Bring all of it; what could not be is in `refused`. Raises UserError, as when the disk is full, and
        LostConnection."""
        targets = [(entry, place(self._to, entry.path)) for entry in listing.files]  # all names before the first byte
        self._to.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._to).free
        if progress.total - sum(_come(entry, target) for entry, target in targets) > free:
            raise UserError(
                f"{human(progress.total)} do not fit on the disk, which has {human(free)} free",
                where=str(self._to),
                fix="Fetch less, or give another folder with --to",
            )
        for entry, target in sorted(targets, key=lambda one: bool(REMADE.fullmatch(one[0].path))):
            progress.begin(entry.path)
            try:
                was_here = self._one(entry, target, progress)
            except LostConnection:
                raise
            except Gone:
                self.refused.append(Refused(entry.path, "it was removed there meanwhile"))
            except UserError as e:
                self.refused.append(Refused(entry.path, str(e)))
            except OSError as e:
                full = e.errno in (errno.ENOSPC, errno.EDQUOT)
                raise UserError(
                    f"cannot be written: {e.strerror or e}",
                    where=str(target),
                    fix="What came is kept: free some space, and the same command goes on"
                    if full
                    else "Give another folder with --to",
                ) from None
            else:
                self._arrived(target, was_here)
            progress.end(entry.size)

    def close(self) -> None:
        self._line.close()

    def _one(self, entry: FileEntry, target: Path, progress: Progress) -> bool:
        """Whether it was here already. Raises UserError where it cannot be brought, and OSError where it cannot be
        written."""
        there = f"{self._folder}/{entry.path}"
        place(self._to, entry.path)  # once more: what has come may have made a difference
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and self._is_it(entry, there, target):
            return True
        part = target.with_name(target.name + PART)
        with _locked(part) as f:
            for attempt in (1, 2):
                digest = self._fill(entry, there, f, progress)
                wanted = entry.sha256 or self._line.ask(lambda files: files.digest(there, entry.size))
                if digest == wanted:
                    break
                # it was written anew there while it came, or what lay here was damaged
                f.truncate(0)
                if attempt == 2:
                    part.unlink()
                    raise UserError(
                        "came twice with another SHA-256 than it has there",
                        where=entry.path,
                        fix="It may be being written just now: fetch it again later",
                    )
            os.fsync(f.fileno())
            os.utime(part, ns=(entry.mtime_ns, entry.mtime_ns))
            part.replace(target)
        return False

    def _is_it(self, entry: FileEntry, there: str, target: Path) -> bool:
        """Whether the file that is here is what would be fetched. One that only lacks the end, as events do, is to go
        on. Raises UserError for a different file."""
        facts = target.stat()
        if facts.st_size == entry.size and facts.st_mtime_ns == entry.mtime_ns:
            return True
        here = sha256_of(target)
        # of a file that has grown, the beginning is the same
        size = min(facts.st_size, entry.size)
        same = facts.st_size <= entry.size and here == self._line.ask(lambda files: files.digest(there, size))
        if same and facts.st_size == entry.size:
            return True
        remade = REMADE.fullmatch(entry.path) and facts.st_mtime_ns < entry.mtime_ns and not self._another_run
        if same or remade or self._overwrite:
            return False
        # a resume with other settings writes it anew; here it may have been edited
        self._another_run = self._another_run or entry.path != JOB_FILE
        raise UserError("a different file of this name is here already")

    def _fill(self, entry: FileEntry, there: str, f: BinaryIO, progress: Progress) -> str:
        """Bring what the unfinished file lacks; its SHA-256 then."""
        size = f.seek(0, os.SEEK_END)
        if size:
            digest = digest_so_far(f, size)
            same = size <= entry.size and digest.hexdigest() == self._line.ask(lambda files: files.digest(there, size))
            if not same:
                f.truncate(0)
        if not size or not same:
            size, digest = 0, hashlib.sha256()
        f.seek(size)
        progress.had(size)

        def rest(files: Files) -> None:
            for data in files.read(there, f.tell(), entry.size - f.tell()):
                f.write(data)
                digest.update(data)
                progress.moved(len(data))
                self._line.moves()

        self._line.ask(rest)
        f.flush()
        return digest.hexdigest()


@contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    """The unfinished file, to go on writing. Raises UserError when somebody else does that."""
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as e:
        if e.errno != errno.ELOOP:
            raise
        raise UserError("is a link, and nothing is written through links", where=str(part), fix="Remove it") from None
    with os.fdopen(descriptor, "r+b") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("another fetch is writing it", where=str(part), fix="Wait for that to end") from None
        if os.fstat(descriptor).st_ino != part.stat().st_ino:
            raise UserError("another fetch has just finished it", where=str(part), fix="Fetch again")
        yield f


def digest_so_far(f: BinaryIO, size: int) -> Any:
    """SHA-256 of the first `size` bytes of a file, to be gone on with."""
    f.seek(0)
    digest = hashlib.sha256()
    while data := f.read(min(CHUNK, size)):
        digest.update(data)
        size -= len(data)
    return digest


def sha256_of(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _come(entry: FileEntry, target: Path) -> int:
    """Bytes of it that are on this disk already, whole or unfinished."""
    here = (path.stat().st_size for path in (target, target.with_name(target.name + PART)) if path.is_file())
    return min(entry.size, max(here, default=0))

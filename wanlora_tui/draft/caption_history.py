"""Caption files written, and taken back: all of an order or none. What they are to say is clip_captions's."""

from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

from presets.atomic_file import write_file
from presets.errors import UserError


class CaptionChange(NamedTuple):
    """One caption file as it would be written."""

    clip: str  # its path
    name: str  # of the clip, in its folder
    file: Path
    before: str  # what the clip's caption says now
    after: str


class _Written(NamedTuple):
    file: Path
    before: bytes | None  # None: there was none
    after: bytes


class CaptionHistory:
    """What was written, newest last, to be taken back one by one while the wizard lives."""

    def __init__(self) -> None:
        self._done: list[tuple[list[CaptionChange], list[_Written]]] = []

    def __len__(self) -> int:
        return len(self._done)

    def write(self, changes: list[CaptionChange]) -> None:
        """Write all, or none. Raises UserError."""
        for _ in self.writing(changes):
            pass

    def writing(self, changes: list[CaptionChange]) -> Generator[int, None, None]:
        """Write one after the other: how many there are by now. All, or none: an error, or `close` before the end, puts
        back what was there before. Raises UserError."""
        done: list[_Written] = []
        try:
            for change in changes:
                text = (change.after + "\n").encode() if change.after else b""
                before = change.file.read_bytes() if change.file.is_file() else None
                write_file(change.file, text)
                done.append(_Written(change.file, before, text))
                yield len(done)
            self._done.append((changes, done))
        except OSError as e:
            _restore_all(done)
            raise UserError(
                f"the caption cannot be written ({(e.strerror or str(e)).lower()})"
                + ("; none was changed" if len(changes) > 1 else ""),
                where=str(change.file),
                fix="Check who may write there, or use another copy of the folder",
            ) from None
        except GeneratorExit:
            _restore_all(done)
            raise

    def take_back(self) -> list[CaptionChange]:
        """Undo the newest; the changes that were undone, with `before` and `after` the other way round. A file that
        somebody has changed since stays. Raises UserError."""
        changes, done = self._done[-1]
        back = []
        try:
            for change, written in zip(changes, done, strict=True):
                if written.file.is_file() and written.file.read_bytes() == written.after:
                    _restore(written)
                    back.append(change._replace(before=change.after, after=change.before))
        except OSError as e:
            raise UserError(
                f"the caption cannot be taken back ({(e.strerror or str(e)).lower()})", where=str(written.file)
            ) from None
        self._done.pop()
        return back


def _restore_all(done: list[_Written]) -> None:
    for written in reversed(done):
        _restore(written)


def _restore(written: _Written) -> None:
    if written.before is None:
        written.file.unlink(missing_ok=True)
    else:
        write_file(written.file, written.before)

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


class _Order(NamedTuple):
    """What was written at once, and what it was for in a word or two."""

    title: str
    changes: list[CaptionChange]
    done: list[_Written]


class CaptionHistory:
    """What was written, newest last, to be taken back one by one while the wizard lives."""

    def __init__(self) -> None:
        self._done: list[_Order] = []

    def __len__(self) -> int:
        return len(self._done)

    @property
    def newest(self) -> tuple[str, int]:
        """The title of what would be taken back, and how many captions it is."""
        return self._done[-1].title, len(self._done[-1].changes)

    def write(self, changes: list[CaptionChange], title: str) -> None:
        """Write all, or none. Raises UserError."""
        for _ in self.writing(changes, title):
            pass

    def writing(self, changes: list[CaptionChange], title: str) -> Generator[int, None, list[CaptionChange]]:
        """Write one after the other: how many there are by now, and in the end what was written. All, or none: an
        error, or `close` before the end, puts back what was there before. Raises UserError."""
        done: list[_Written] = []
        try:
            for change in changes:
                text = (change.after + "\n").encode() if change.after else b""
                before = change.file.read_bytes() if change.file.is_file() else None
                write_file(change.file, text)
                done.append(_Written(change.file, before, text))
                yield len(done)
            self._done.append(_Order(title, changes, done))
            return changes
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

    def taking_back(self) -> Generator[int, None, list[CaptionChange]]:
        """Undo the newest, one caption after the other: how many were looked at by now, and in the end the changes that
        were undone, with `before` and `after` the other way round. A file that somebody has changed since stays. All,
        or none: an error, or `close` before the end, leaves what was written. Raises UserError."""
        order = self._done[-1]
        back: list[tuple[CaptionChange, _Written]] = []
        try:
            for number, (change, written) in enumerate(zip(order.changes, order.done, strict=True), 1):
                if written.file.is_file() and written.file.read_bytes() == written.after:
                    _restore(written)
                    back.append((change, written))
                yield number
            self._done.pop()
            return [change._replace(before=change.after, after=change.before) for change, _ in back]
        except OSError as e:
            _write_again(back)
            raise UserError(
                f"the caption cannot be taken back ({(e.strerror or str(e)).lower()})"
                + ("; all are as they were written" if len(order.changes) > 1 else ""),
                where=str(written.file),
                fix="Check who may write there",
            ) from None
        except GeneratorExit:
            _write_again(back)
            raise


def _write_again(back: list[tuple[CaptionChange, _Written]]) -> None:
    for _, written in back:
        write_file(written.file, written.after)


def _restore_all(done: list[_Written]) -> None:
    for written in reversed(done):
        _restore(written)


def _restore(written: _Written) -> None:
    if written.before is None:
        written.file.unlink(missing_ok=True)
    else:
        write_file(written.file, written.before)

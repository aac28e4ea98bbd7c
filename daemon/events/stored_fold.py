"""The fold of a run's events kept beside them, in RUN/events.fold: what a long run adds up to need not be read again.

It counts only while it is whole, was written by this user in this version, and belongs to the very file that lies
there. Anything else is passed over, and made anew by daemon.events.event_tail, which reads the events.
"""

import hashlib
import logging
import os
import stat
from pathlib import Path

import msgspec
from msgspec import Raw, Struct

from daemon.wire.protocol import MAX_EVENT_BYTES
from presets import VERSION
from presets.atomic_file import write_file
from presets.files import open_regular, read_regular
from presets.runs.events import EVENTS_FILE, Event, decode_event
from presets.runs.run_view import FOLD_VERSION, RunView

log = logging.getLogger("daemon")

FOLD_FILE = "events.fold"
MAX_FOLD_BYTES = 32 * 2**20
_MAGIC = b"wanlora fold\n"
_DIGEST_BYTES = 16
_SAMPLES, _SAMPLE_BYTES = 16, 4096  # of the events, evenly, the first and the last bytes among them


class StoredFold(Struct, kw_only=True):
    """What a tail knows after the first `offset` bytes."""

    offset: int
    index: list[tuple[int, int]]  # (seq, offset just behind it), rising
    view: RunView
    last_word: Event | None
    started: Event | None


class _Identity(Struct, frozen=True):
    """Which bytes were folded, and by what."""

    wanlora: str
    version: int
    inode: int
    size: int  # of the file when it was looked at; it grows
    modified: int  # ns
    samples: bytes


class _File(Struct):
    identity: _Identity
    fold: Raw


_file_decoder = msgspec.msgpack.Decoder(_File)
_fold_decoder = msgspec.msgpack.Decoder(StoredFold)


def read_fold(run_dir: Path) -> StoredFold | None:
    """The fold that fits the events which lie there now; None when there is none."""
    path = run_dir / FOLD_FILE
    try:
        facts = path.lstat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
            return None
        data = read_regular(path, MAX_FOLD_BYTES)
        head = len(_MAGIC) + _DIGEST_BYTES
        if data[:head] != _MAGIC + _digest(data[head:]):
            return None
        file = _file_decoder.decode(data[head:])
        known, fold = file.identity, _fold_decoder.decode(file.fold)
        now = _identify(run_dir, fold)
    except (OSError, ValueError, RecursionError):
        return None
    same = msgspec.structs.replace(known, size=now.size, modified=now.modified) == now
    grown = now.size > known.size or (now.size == known.size and now.modified == known.modified)
    return fold if same and grown else None


def write_fold(run_dir: Path, encoded: bytes) -> None:
    """Keep an encoded StoredFold. A folder that takes no file keeps none."""
    try:
        fold = _fold_decoder.decode(encoded)
        identity = _identify(run_dir, fold)
        _require_last(run_dir, fold)
        data = msgspec.msgpack.encode(_File(identity, Raw(encoded)))
        if len(data) <= MAX_FOLD_BYTES:
            write_file(run_dir / FOLD_FILE, _MAGIC + _digest(data) + data, private=True)
    except (OSError, ValueError) as e:
        log.info("%s is not kept: %s", run_dir / FOLD_FILE, e)


def _require_last(run_dir: Path, fold: StoredFold) -> None:
    """Raises ValueError unless the last event that was folded ends there: the file may have been begun anew since."""
    with open_regular(run_dir / EVENTS_FILE) as f:
        f.seek(max(0, fold.offset - MAX_EVENT_BYTES - 1))
        end = f.read(min(fold.offset, MAX_EVENT_BYTES + 1))
    last = decode_event(end.rstrip(b"\n").rpartition(b"\n")[2])
    if not end.endswith(b"\n") or (last.seq, last.time) != (fold.view.last_seq, fold.view.updated_at):
        raise ValueError("its end is not what was folded")


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()


def _identify(run_dir: Path, fold: StoredFold) -> _Identity:
    """Of the events as they lie there. Raises OSError, and ValueError when they are too few."""
    digest = hashlib.blake2b(str(fold.offset).encode(), digest_size=_DIGEST_BYTES)
    with open_regular(run_dir / EVENTS_FILE) as f:
        facts = os.fstat(f.fileno())
        if facts.st_size < fold.offset:
            raise ValueError("the events are fewer")
        last = max(0, fold.offset - _SAMPLE_BYTES)
        for i in range(_SAMPLES):
            f.seek(last * i // (_SAMPLES - 1))
            digest.update(f.read(min(_SAMPLE_BYTES, fold.offset)))
    return _Identity(VERSION, FOLD_VERSION, facts.st_ino, facts.st_size, facts.st_mtime_ns, digest.digest())

"""The other end of a channel: requests on stdin are answered on stdout, until stdin ends.

`wanlora serve-files` runs it, started through ssh by wanlora_tui.transfer.channel. Whoever may start it may do all that
it does with a shell, too.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from presets.errors import UserError
from wanlora_tui.transfer import messages as say
from wanlora_tui.transfer.here import HereFiles, absolute
from wanlora_tui.transfer.messages import MAX_LINE_BYTES, PART


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until there are no more requests, or one breaks off: who asks opens another channel then, and hears why.
    Raises OSError when nobody reads the answers any more."""
    here = HereFiles()
    while line := requests.readline(MAX_LINE_BYTES):
        pieces: Iterator[bytes] = iter(())
        reply: say.Reply
        try:
            request = say.decode_request(line)
            data = requests.read(request.length) if isinstance(request, say.Write) else b""
            if isinstance(request, say.Read):
                # the first piece is read before the answer, so that what cannot be read at all is refused
                reply, pieces = (
                    say.Content(request.length),
                    _begun(here.read(request.path, request.offset, request.length)),
                )
            else:
                reply = _reply(here, request, data)
        except msgspec.MsgspecError as e:
            reply = say.Failed(
                f"the machines have different versions of wanlora ({e})", fix="Install the same one on both"
            )
        except UserError as e:
            reply = say.Failed(e.what, e.where, e.fix, isinstance(e, say.Gone))
        except OSError as e:
            reply = say.Failed(e.strerror or str(e), str(e.filename or ""))
        answers.write(say.encode(reply) + b"\n")
        try:
            for piece in pieces:
                answers.write(piece)
        except UserError:  # it became shorter, or unreadable, after its length was announced: only the end says so
            return
        answers.flush()


def _begun(pieces: Iterator[bytes]) -> Iterator[bytes]:
    first = next(pieces, b"")

    def all_of_it() -> Iterator[bytes]:
        yield first
        yield from pieces

    return all_of_it()


def _reply(here: HereFiles, request: say.Request, data: bytes) -> say.Reply:
    match request:
        case say.ListRun(folder, what, step):
            return here.list_run(folder, what, step)
        case say.ListFolder(path):
            return here.list_folder(path)
        case say.FactsOf(paths):
            return say.FactsFound(here.facts(paths))
        case say.Digest(path, length):
            return say.Sha256(here.digest(path, length))
        case say.Write(path, offset, length):
            _write(absolute(path), offset, length, data)
        case say.Finish(path, sha256, mtime_ns, replace):
            _finish(absolute(path), sha256, mtime_ns, replace=replace)
        case say.Remove(path):
            _remove(absolute(path))
    return say.Done()


def _write(path: Path, offset: int, length: int, data: bytes) -> None:
    if len(data) != length:  # the line was cut within them
        raise OSError("the data ended too early")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + PART)
    with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666), "r+b") as f:
        if f.seek(0, os.SEEK_END) < offset:
            raise OSError(f"{part} has fewer bytes than {offset}")
        f.truncate(offset)
        f.seek(offset)
        f.write(data)


def _finish(path: Path, sha256: str, mtime_ns: int, *, replace: bool) -> None:
    part = path.with_name(path.name + PART)
    if _sha256(part) != sha256:
        part.unlink()
        raise UserError("what came differs from what was sent", where=str(path), fix="Send it again")
    if path.exists() and not replace and _sha256(path) != sha256:
        part.unlink()
        raise UserError("another file lies there already", where=str(path))
    with part.open("rb") as f:
        os.fsync(f.fileno())
    if mtime_ns:
        os.utime(part, ns=(mtime_ns, mtime_ns))
    part.replace(path)


def _remove(path: Path) -> None:
    """With the folders that it leaves empty."""
    path.unlink(missing_ok=True)
    with suppress(OSError):
        for folder in path.parents:
            if folder == Path.home():
                return
            folder.rmdir()


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()

"""Files of another machine, over the standard streams of a program that runs there (wanlora_tui.transfer.other_end).

Files of this machine are wanlora_tui.transfer.here's, which answers the same.
"""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Protocol, TypeVar

import msgspec

from presets.errors import UserError
from wanlora_tui.remote.far_process import SSH_FAILED
from wanlora_tui.remote.far_shell import harmless
from wanlora_tui.transfer import messages as say
from wanlora_tui.transfer.messages import MAX_LINE_BYTES, Cut, Facts, Gone, Listing, What

LEAST, MOST = 2**16, 2**24  # bytes that are asked for at once
ASK_SECONDS = 0.7  # that they should take: others share the line, and progress is shown between two
SILENCE_SECONDS = 120.0  # for an answer, or a piece of a file: a disk there may have to wake, a line to recover
DIGEST_RATE = 10e6  # bytes a second that a slow disk there reads at least
END_SECONDS = 2.0  # for a program whose answers have ended to end too
SAME = "Install the same version of wanlora on both machines"
T = TypeVar("T", bound=say.Reply)


class Program(Protocol):
    """A program that runs on the other machine (wanlora_tui.remote.far_process)."""

    stdout: IO[bytes]

    @property
    def stdin(self) -> IO[bytes]: ...
    @property
    def stderr(self) -> str: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def end(self) -> None: ...
    def close(self) -> None: ...


class FarFiles:
    """`program` is the other end. Every method raises Cut, and UserError for what the other end refuses."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._chunk = LEAST
        self._silent = 0.0  # seconds after which it was given up

    def list_run(self, folder: str, what: What, step: int | None = None) -> Listing:
        return self._ask(say.ListRun(folder, what, step), Listing)

    def list_folder(self, path: str) -> Listing:
        return self._ask(say.ListFolder(path), Listing)

    def facts(self, paths: list[str]) -> list[Facts]:
        found = self._ask(say.FactsOf(paths), say.FactsFound).facts
        if len(found) != len(paths):
            raise Cut("it answers something else than was asked")
        return found

    def digest(self, path: str, length: int) -> str:
        return self._ask(say.Digest(path, length), say.Sha256, seconds=length / DIGEST_RATE).sha256

    def read(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        """Exactly `length` bytes, in pieces that suit the line."""
        while length:
            began, wanted = time.monotonic(), min(self._chunk, length)
            if self._ask(say.Read(path, offset, wanted), say.Content).length != wanted:
                raise Cut("it sends another amount than was asked for")
            yield self._take(wanted)
            offset, length = offset + wanted, length - wanted
            self._adapt(time.monotonic() - began)

    def write(self, path: str, offset: int, data: bytes) -> None:
        self._ask(say.Write(path, offset, len(data)), say.Done, data)

    def finish(self, path: str, sha256: str, mtime_ns: int = 0, *, replace: bool = False) -> None:
        self._ask(say.Finish(path, sha256, mtime_ns, replace), say.Done)

    def remove(self, path: str) -> None:
        self._ask(say.Remove(path), say.Done)

    @property
    def piece(self) -> int:
        """Bytes that suit the line just now."""
        return self._chunk

    def _adapt(self, seconds: float) -> None:
        self._chunk = max(LEAST, min(MOST, self._chunk * 2 if seconds < ASK_SECONDS else self._chunk // 2))

    @contextmanager
    def _answering(self, seconds: float) -> Iterator[None]:
        """Give the other end up where it takes longer."""

        def give_up() -> None:
            self._silent = seconds
            self._program.end()

        timer = threading.Timer(seconds, give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _ask(self, request: say.Request, expected: type[T], data: bytes = b"", *, seconds: float = 0.0) -> T:
        """`seconds`: that it may take for what it has to do."""
        began = time.monotonic()
        try:
            with self._answering(SILENCE_SECONDS + seconds):
                self._program.stdin.write(say.encode(request) + b"\n" + data)
                self._program.stdin.flush()
                line = self._program.stdout.readline(MAX_LINE_BYTES)
        except (OSError, ValueError):  # it has ended, or was closed here
            line = b""
        if not line.endswith(b"\n"):
            raise self._ended()
        try:
            reply = say.decode_reply(line)
        except (msgspec.MsgspecError, RecursionError) as e:
            raise UserError(f"the other machine has another version of wanlora ({e})", fix=SAME) from None
        if data:
            self._adapt(time.monotonic() - began)
        if isinstance(reply, say.Failed):
            error = Gone if reply.gone else UserError
            raise error(harmless(reply.what), where=harmless(reply.where), fix=harmless(reply.fix))
        if isinstance(reply, Listing):
            reply.passed_over = [harmless(words).replace("\n", " ") for words in reply.passed_over]
        if not isinstance(reply, expected):
            raise Cut("it answers something else than was asked")
        return reply

    def _take(self, size: int) -> bytes:
        try:
            with self._answering(SILENCE_SECONDS):
                data = self._program.stdout.read(size)
        except (OSError, ValueError):
            data = b""
        if len(data) != size:
            raise self._ended()
        return data

    def _ended(self) -> Cut | UserError:
        """Why, with the last words of the program, which has ended or does now: by itself only if it is another."""
        try:
            code = self._program.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._program.end()
            code = SSH_FAILED
        if self._silent:
            return Cut(f"it has not answered for {self._silent:.0f} s")
        words = harmless(self._program.stderr).strip().rpartition("\n")[2]
        if 0 < code < SSH_FAILED:
            return UserError(f"wanlora there ended: {words or f'exit code {code}'}", fix=SAME)
        return Cut(words or "the connection has ended")

    def end(self) -> None:
        """From any thread: what is being asked raises Cut."""
        self._program.end()

    def close(self) -> None:
        self._program.close()

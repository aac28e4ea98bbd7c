"""A program that runs on the other machine, over the connection that is there already."""

import os
import resource
import subprocess
import tempfile
import threading
from contextlib import suppress
from types import TracebackType
from typing import IO

from daemon.errors import DaemonError
from wanlora_tui.remote.far_shell import after_mark, harmless, last_line, marked, new_mark
from wanlora_tui.remote.ssh_line import SshLine

SSH_FAILED = 255  # the exit code of ssh's own troubles
MOST_WORDS = 2**20  # bytes of stderr that are looked at
MOST_SHOWN = 1000  # signs of its last line
MOST_KEPT = 64 * 2**20  # bytes of stderr, beyond which it is ended
MOST_NOISE = 2**20  # bytes that start files of a shell may print before ours
BEGIN_SECONDS = 60.0  # for these, and for what they wait for


class LineLost(DaemonError):
    """There is no connection at present, or it broke while it was used: what was begun may be tried again."""


class FarProcess:
    """Its stdout as it comes, without what start files print before; its stderr when it is over. Use as a context: the
    end of it ends the program too."""

    def __init__(
        self,
        line: SshLine,
        script: str,
        stdin: bytes | IO[bytes] | int | None = None,
        timeout: float | None = None,
    ) -> None:
        """`timeout`: seconds after which it is ended. Raises LineLost when the line breaks before it has begun, or it
        does not begin."""
        self._host, mark = line.host, new_mark()
        self._mark = mark
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `close`)
        given: IO[bytes] | int = subprocess.DEVNULL
        if isinstance(stdin, bytes):
            given = tempfile.TemporaryFile()  # noqa: SIM115  (closed below)
            given.write(stdin)
            given.seek(0)
        elif stdin is not None:
            given = stdin
        self._process = subprocess.Popen(
            line.session(marked(script, mark), "-T"), stdin=given, stdout=subprocess.PIPE, stderr=self._stderr
        )
        if isinstance(stdin, bytes) and not isinstance(given, int):
            given.close()
        assert self._process.stdout is not None
        self.stdout: IO[bytes] = self._process.stdout
        if hasattr(resource, "prlimit"):
            with suppress(OSError):  # it has ended already
                resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (MOST_KEPT, MOST_KEPT))
        self._seconds, self._is_late = timeout or BEGIN_SECONDS, False
        self._timer = threading.Timer(self._seconds, self._end_late)
        self._timer.daemon = True
        self._timer.start()
        noise = 0
        while (heard := self.stdout.readline(MOST_NOISE)).strip() != mark.encode():
            noise += len(heard)
            if not heard or noise > MOST_NOISE:
                if heard:
                    self.end()
                code, words = self.wait(), last_line(self.stderr) or last_line(heard.decode("utf-8", "replace"))
                words = words[:MOST_SHOWN]
                self.close()
                self.require_in_time()
                if code == SSH_FAILED:
                    raise LineLost(f"no connection to {self._host}: {words or 'ssh ended'}")
                raise DaemonError(
                    f"the shell on {self._host} ran nothing (exit {code}): {words or 'it said nothing'}",
                    fix=f"Try: ssh {self._host} echo hello",
                )
        if timeout is None:
            self._timer.cancel()

    def _end_late(self) -> None:
        self._is_late = True
        self.end()

    def require_in_time(self) -> None:
        """Raises LineLost when it was ended because it took too long."""
        if self._is_late:
            raise LineLost(
                f"{self._host} has not answered for {self._seconds:.0f} s",
                fix=f"Does this come back: ssh {self._host} echo hello? Its start files may wait for something",
            )

    @property
    def stdin(self) -> IO[bytes]:
        """Of one that was started with subprocess.PIPE."""
        assert self._process.stdin is not None
        return self._process.stdin

    def read(self, size: int = -1) -> bytes:
        """Bytes of its stdout; b"" at its proper end. Raises LineLost when the line broke, DaemonError with its words
        when it failed."""
        data = self.stdout.read(size)
        if not data and (code := self.wait()):
            self.require(code)
        return data

    def require(self, code: int) -> None:
        """Raises what an exit code stands for, unless it is 0."""
        words = last_line(self.stderr)[:MOST_SHOWN]
        if self.line_broke(code):
            raise LineLost(f"the connection to {self._host} broke{': ' + words if words else ''}")
        if code:
            raise DaemonError(f"{self._host}: {words or f'exit code {code}'}")

    def line_broke(self, code: int) -> bool:
        """Whether it is the connection that failed, not the program."""
        return code == SSH_FAILED or code < 0

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code. Raises subprocess.TimeoutExpired."""
        return self._process.wait(timeout)

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        file = self._stderr.fileno()  # read without a seek: its writer shares the place with us
        return harmless(after_mark(os.pread(file, MOST_WORDS, 0).decode("utf-8", "replace"), self._mark))

    def end(self) -> None:
        """End it now; the line is as good as broken."""
        self._process.terminate()

    def close(self) -> None:
        self._timer.cancel()
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()
        self.stdout.close()
        if self._process.stdin is not None:
            with suppress(OSError):  # what was not sent yet
                self._process.stdin.close()
        self._stderr.close()

    def __enter__(self) -> "FarProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

"""Both ends of a channel, over pipes: what is asked, what is refused, and what another end could say to do harm."""

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import pytest

from presets.errors import UserError
from wanlora_tui.transfer import channel
from wanlora_tui.transfer.channel import FarFiles
from wanlora_tui.transfer.here import HereFiles
from wanlora_tui.transfer.messages import Content, Cut, Gone, encode
from wanlora_tui.transfer.other_end import serve
from wanlora_tui.transfer.progress import Progress
from wanlora_tui.transfer.retrying import Retrying
from wanlora_tui.transfer.sending import ToSend, send


class Pipes:
    """A program that is the other end, in a thread."""

    stderr = "last words\x1b]0;title\x07"

    def __init__(self, served=serve) -> None:
        to_end, self.stdin = _pipe()
        self.stdout, from_end = _pipe()

        def run() -> None:
            with suppress(OSError), to_end, from_end:
                served(to_end, from_end)

        self._thread = threading.Thread(target=run)
        self._thread.start()

    code = 255

    def wait(self, timeout: float | None = None) -> int:
        return self.code

    def end(self) -> None:
        with suppress(OSError):
            self.stdin.close()

    def close(self) -> None:
        self.end()
        self._thread.join()
        self.stdout.close()


def _pipe() -> tuple[BinaryIO, BinaryIO]:
    read, write = os.pipe()
    return os.fdopen(read, "rb"), os.fdopen(write, "wb")


@pytest.fixture
def far() -> Iterator[FarFiles]:
    files = FarFiles(Pipes())
    yield files
    files.close()


def test_an_end_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Before an answer, and within the bytes of a file."""
    monkeypatch.setattr(channel, "SILENCE_SECONDS", 0.2)
    (tmp_path / "a").write_bytes(b"some bytes")

    def says_nothing(asked: BinaryIO, answers: BinaryIO) -> None:
        asked.read()

    def says_half(asked: BinaryIO, answers: BinaryIO) -> None:
        asked.readline()
        answers.write(encode(Content(10)) + b"\nsome")
        answers.flush()
        asked.read()

    for served in (says_nothing, says_half):
        files = FarFiles(Pipes(served))
        with pytest.raises(Cut, match="has not answered for"):
            list(files.read(str(tmp_path / "a"), 0, 10))
        files.close()


def test_files_are_read_and_looked_at(far: FarFiles, tmp_path: Path):
    data = os.urandom(200_000)
    (tmp_path / "a").write_bytes(data)
    assert b"".join(far.read(str(tmp_path / "a"), 10, 199_990)) == data[10:]
    assert far.digest(str(tmp_path / "a"), 7) == hashlib.sha256(data[:7]).hexdigest()
    file, folder, none = far.facts([str(tmp_path / name) for name in ("a", "", "none")])
    assert (file.kind, file.size, folder.kind, none.kind) == ("file", 200_000, "folder", "none")
    with pytest.raises(Gone):
        list(far.read(str(tmp_path / "none"), 0, 1))
    with pytest.raises(UserError, match="named pipe"):
        os.mkfifo(tmp_path / "pipe")
        list(far.read(str(tmp_path / "pipe"), 0, 1))
    assert far.list_folder(str(tmp_path)).files[0].path == "a", "the channel goes on after a refusal"


def test_files_are_written_whole_or_not_at_all(far: FarFiles, tmp_path: Path):
    target, data = str(tmp_path / "deep/a"), b"new content"
    far.write(target, 0, data[:4])
    far.write(target, 4, data[4:])
    assert not Path(target).exists()
    with pytest.raises(UserError, match="differs"):
        far.finish(target, "0" * 64)
    far.write(target, 0, data)
    far.finish(target, hashlib.sha256(data).hexdigest(), 10**18)
    assert Path(target).read_bytes() == data and Path(target).stat().st_mtime_ns == 10**18
    for replace in (False, True):
        far.write(target, 0, b"other")
        if not replace:
            with pytest.raises(UserError, match="another file"):
                far.finish(target, hashlib.sha256(b"other").hexdigest())
            assert Path(target).read_bytes() == data
        else:
            far.finish(target, hashlib.sha256(b"other").hexdigest(), replace=True)
    assert Path(target).read_bytes() == b"other" and len(list((tmp_path / "deep").iterdir())) == 1


@pytest.mark.parametrize("begun", [b"", b"x" * 100_000, b"y" * 50, b"x" * 300_000])
def test_a_file_that_was_begun_goes_on(far: FarFiles, tmp_path: Path, begun: bytes):
    here, there = tmp_path / "here", tmp_path / "there"
    here.write_bytes(b"x" * 200_000)
    if begun:
        (tmp_path / "there.part").write_bytes(begun)
    line, sent = Retrying(lambda: far, lambda _: None), []
    for _ in range(2):
        progress = Progress(200_000, lambda _: None, 1e9)
        send(line, [ToSend(here, str(there))], progress, sent.append)
        assert progress.done == 200_000
    assert there.read_bytes() == here.read_bytes() and len(sent) == 1


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"", Cut),
        (b"nonsense\n", UserError),
        (b'{"type":"Content","length":5}\n', Cut),
        (b'{"type":"Listing","files":[{"path":"a","size":-1,"mtime_ns":0}]}\n', UserError),
        (b"[" * 100_000 + b"\n", UserError),
    ],
)
def test_an_end_that_says_something_else(said: bytes, error: type[Exception]):
    def odd(requests: BinaryIO, answers: BinaryIO) -> None:
        requests.readline()
        answers.write(said)

    far = FarFiles(Pipes(odd))
    with pytest.raises(error) as raised:
        far.list_folder("a")
    assert "\x1b" not in str(raised.value)
    far.close()


def test_a_file_that_shrinks_while_it_comes_takes_no_other_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A log that is begun anew: its own fetch ends with the reason, and the next file is asked for as before."""
    log, other = tmp_path / "log", tmp_path / "other"
    log.write_bytes(b"x" * 50_000)
    other.write_bytes(b"y" * 20_000)
    monkeypatch.setattr("wanlora_tui.transfer.here.CHUNK", 10_000)
    plain = HereFiles.read

    def shrinking(self: HereFiles, path: str, offset: int, length: int) -> Iterator[bytes]:
        for data in plain(self, path, offset, length):
            yield data
            if path == str(log):
                os.truncate(log, 100)

    monkeypatch.setattr(HereFiles, "read", shrinking)
    programs: list[Pipes] = []

    def connect() -> FarFiles:
        programs.append(Pipes())
        programs[-1].code = 0  # it ends as it should
        return FarFiles(programs[-1])

    line = Retrying(connect, lambda _: None, sleep=lambda _: None)
    with pytest.raises(UserError, match="has become shorter"):
        line.ask(lambda files: b"".join(files.read(str(log), 0, 50_000)))
    assert line.ask(lambda files: b"".join(files.read(str(other), 0, 20_000))) == b"y" * 20_000
    assert len(programs) == 2
    line.close()


def test_an_older_wanlora_there_is_no_cut_line():
    """Which would be tried again and again."""
    program = Pipes(lambda requests, answers: None)
    program.code = 2
    far = FarFiles(program)
    with pytest.raises(UserError, match=r"last words.*Install the same version"):
        far.list_folder("a")
    far.close()


def test_words_of_the_other_end_are_harmless(tmp_path: Path):
    def hostile(requests: BinaryIO, answers: BinaryIO) -> None:
        requests.readline()
        answers.write(b'{"type":"Failed","what":"a\\u001b]0;x\\u0007b"}\n')

    far = FarFiles(Pipes(hostile))
    with pytest.raises(UserError, match=r"a\]0;xb"):
        far.list_folder("a")
    far.close()

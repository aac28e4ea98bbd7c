"""Whatever lies at a path, reading it comes to an end."""

import os
import re
import socket
from pathlib import Path

import pytest

from presets.errors import UserError
from presets.files import open_regular, read_regular, same_weights, share_no_writing
from presets.job.toml_file import MAX_JOB_BYTES, load_job


def no_file(kind: str, folder: Path) -> Path:
    path = folder / "job.toml"
    match kind:
        case "named pipe":
            os.mkfifo(path)
        case "link to a named pipe":
            os.mkfifo(folder / "pipe")
            path.symlink_to("pipe")
        case "socket":
            with socket.socket(socket.AF_UNIX) as s:
                s.bind(os.path.relpath(path))
        case "device":
            return Path("/dev/zero")
    return path


@pytest.mark.parametrize("kind", ["named pipe", "socket", "device", "link to a named pipe"])
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path: Path, kind: str):
    path = no_file(kind, tmp_path)
    with pytest.raises(OSError, match=f"it is a {kind.removeprefix('link to a ')} and not a file"):
        open_regular(path)
    with pytest.raises(UserError, match=f"{re.escape(str(path))}: cannot be read: it is a"):
        load_job(path)


def test_a_directory_keeps_its_own_word(tmp_path: Path):
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)


def test_no_more_is_read_than_is_sensible(tmp_path: Path):
    path = tmp_path / "job.toml"
    path.write_bytes(b"x" * 10)
    assert read_regular(path, 10) == b"x" * 10
    with pytest.raises(OSError, match="it has 10 bytes, and such a file at most 9"):
        read_regular(path, 9)
    os.truncate(path, 200 * 2**20)
    with pytest.raises(UserError, match=f"it has 209,715,200 bytes, and such a file at most {MAX_JOB_BYTES:,}"):
        load_job(path)
    assert b"Name" in read_regular(Path("/proc/self/status"), 2**20)  # says it is empty, and is not


@pytest.mark.parametrize(("before", "after"), [(0o000, 0o022), (0o002, 0o022), (0o022, 0o022), (0o077, 0o077)])
def test_nobody_else_may_write_to_what_is_made(before: int, after: int):
    kept = os.umask(before)
    try:
        share_no_writing()
        assert os.umask(0) == after
    finally:
        os.umask(kept)


def test_files_of_the_same_weights_are_links_and_copies(tmp_path: Path):
    content = os.urandom(400_000)
    for name, differs_at in (("a", None), ("copy", None), ("begin", 0), ("middle", 200_000), ("longer", None)):
        changed = bytearray(content)
        if differs_at is not None:
            changed[differs_at : differs_at + 8192] = bytes(8192)
        (tmp_path / name).write_bytes(changed + (b"x" if name == "longer" else b""))
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "hard").hardlink_to(tmp_path / "a")
    same = [
        n for n in ("copy", "link", "hard", "begin", "middle", "longer") if same_weights(tmp_path / "a", tmp_path / n)
    ]
    assert same == ["copy", "link", "hard"]
    with pytest.raises(OSError):
        same_weights(tmp_path / "a", tmp_path / "gone")

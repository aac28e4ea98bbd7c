"""Whatever lies at a path, reading it comes to an end."""

import os
import re
import socket
from pathlib import Path

import pytest

from presets.errors import UserError
from presets.files import open_regular, read_regular
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

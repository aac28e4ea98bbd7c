"""A file that is written anew is the old one or the new one, with the permissions it had, and nothing beside it."""

import os
import stat
from pathlib import Path

import pytest

from presets.atomic_file import replacing, write_file


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_an_error_leaves_what_was_there_and_nothing_beside_it(tmp_path: Path):
    path = tmp_path / "a"
    write_file(path, b"before")
    with pytest.raises(ZeroDivisionError), replacing(path) as aside:
        aside.write_text("half")
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and path.read_bytes() == b"before"


def test_until_the_end_the_old_one_lies_there(tmp_path: Path):
    path = tmp_path / "a"
    write_file(path, b"before")
    with replacing(path) as aside:
        aside.write_bytes(b"after")
        assert path.read_bytes() == b"before" and aside.parent == tmp_path, "another disk could not be renamed from"
        assert aside.name.startswith(".") and aside.name.endswith(".tmp"), "or a resume does not find what a kill left"
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and path.read_bytes() == b"after"


def test_permissions(tmp_path: Path):
    umask = os.umask(0o022)
    try:
        write_file(tmp_path / "deep" / "a", b"")
        write_file(tmp_path / "private", b"", private=True)
        (tmp_path / "deep" / "a").chmod(0o640)
        write_file(tmp_path / "deep" / "a", b"x")
        write_file(tmp_path / "b", b"")
    finally:
        os.umask(umask)
    modes = [mode(tmp_path / name) for name in ("deep/a", "private", "b")]
    assert modes == [0o640, 0o600, 0o644] and (tmp_path / "deep" / "a").read_bytes() == b"x"


@pytest.mark.parametrize("sync", [False, True])
def test_the_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool):
    synced: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.pread(fd, 10, 0) + bytes((tmp_path / "a").exists())))
    write_file(tmp_path / "a", b"x", sync=sync)
    assert synced == ([b"x"] if sync else [])

"""Private directories, short socket paths."""

import os
from pathlib import Path

import pytest

from daemon.wire.paths import IPC_PATH_LIMIT, daemon_paths, make_private, runtime_dir
from presets.errors import UserError


def test_a_directory_of_its_own_holds_everything(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert daemon_paths(Path("d")).database == tmp_path / "d/state/jobs.sqlite3"
    found = daemon_paths(Path("/tmp/d"))
    assert found.control.parent == found.feed.parent == Path("/tmp/d/run")
    assert {found.lock.parent, found.database.parent, found.log.parent, found.job_file(3).parent.parent} == {
        Path("/tmp/d/state")
    }


def test_the_files_keep_their_names():
    """Clients and daemons of all versions meet at them: a lock of another name would let two daemons share a table."""
    there = daemon_paths(Path("/tmp/d"))
    names = [p.name for p in (there.lock, there.database, there.control, there.feed, there.log, there.job_file(3))]
    assert names == ["daemon.lock", "jobs.sqlite3", "control.sock", "feed.sock", "daemon.log", "job-3.toml"]


def test_the_users_own_places(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/tmp")
    assert (
        daemon_paths().runtime == runtime_dir() == Path("/tmp/wanlora")
        and daemon_paths().state == tmp_path / "state/wanlora"
    )


def test_a_runtime_directory_that_is_not_to_be_used_is_passed_over(tmp_path: Path, monkeypatch):
    """Missing, no directory, another user's (su keeps the variable), closed, relative, or too long for a socket."""
    foreign = next(
        p for p in map(Path, ("/proc/1", "/proc")) if p.stat().st_uid != os.getuid() or not os.access(p, os.W_OK)
    )
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # of one job of a batch system: it goes with it
    usual = Path(f"/run/user/{os.getuid()}")
    expected = usual / "wanlora" if usual.exists() else Path(f"/tmp/wanlora-{os.getuid()}")
    for given in ("", str(tmp_path / "gone"), str(tmp_path / "file"), str(foreign), "run", "/tmp/" + "x" * 100):
        monkeypatch.setenv("XDG_RUNTIME_DIR", given)
        assert runtime_dir() == daemon_paths().runtime == expected, given


def test_a_socket_path_that_is_too_long_is_refused_before_anything_is_made(tmp_path: Path):
    fits = Path("/tmp") / ("x" * (IPC_PATH_LIMIT - len("/tmp//run/control.sock")))
    assert len(str(daemon_paths(fits).control)) == IPC_PATH_LIMIT
    with pytest.raises(UserError, match="107 bytes, this one has 108"):
        daemon_paths(fits.with_name(fits.name + "x"))
    with pytest.raises(UserError, match="this one has"):
        daemon_paths(fits.with_name("\u00e9" * 60))  # bytes count, not letters
    assert not fits.exists()


def test_a_private_directory_is_0700_whatever_it_was(tmp_path: Path):
    make_private(tmp_path / "a" / "b")
    assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o700
    (tmp_path / "c").mkdir(mode=0o755)
    make_private(tmp_path / "c")
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o700


def test_a_link_or_a_file_in_its_place_is_refused(tmp_path: Path):
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not a directory of your own"):
        make_private(tmp_path / "link")
    with pytest.raises(UserError, match="cannot be made"):
        make_private(tmp_path / "file")
    assert (tmp_path / "target").stat().st_mode & 0o777 != 0o700

"""Keys and lists of keys: made private, and used only while they are."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.wire import keys
from daemon.wire.keys import (
    ALLOWED,
    CLIENT,
    LOCK,
    SERVER,
    TRUSTED,
    allow_client,
    allowed_clients,
    make_keys,
    read_pair,
    revoke_client,
    split_address,
    trust_daemon,
    trusted_daemons,
)
from daemon.wire.paths import DaemonPaths
from presets.errors import UserError
from tests.helpers import ROOT


@pytest.fixture
def paths(tmp_path: Path) -> DaemonPaths:
    return DaemonPaths(tmp_path / "run", tmp_path / "state", tmp_path / "config")


def test_they_are_made_once_and_private_whatever_the_umask(paths: DaemonPaths):
    before = os.umask(0)
    try:
        assert [path.name for path in make_keys(paths)] == [SERVER, CLIENT]
        allow_client(paths, "ab" * 32, "laptop")
    finally:
        os.umask(before)
    pair = read_pair(paths.keys / SERVER)
    assert make_keys(paths) == [] and read_pair(paths.keys / SERVER) == pair
    assert stat.S_IMODE(paths.keys.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths.keys.iterdir()} == {0o600}
    assert pair.secret not in repr(pair) and pair.public != read_pair(paths.keys / CLIENT).public


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620, 0o660])
def test_a_key_that_others_can_read_or_write_is_not_used(paths: DaemonPaths, mode: int):
    make_keys(paths)
    (paths.keys / SERVER).chmod(mode)
    with pytest.raises(UserError, match="it is not used") as refused:
        read_pair(paths.keys / SERVER)
    assert "chmod 600" in refused.value.fix
    with pytest.raises(UserError):
        make_keys(paths)


def test_a_folder_that_others_may_enter_is_not_used(paths: DaemonPaths):
    make_keys(paths)
    allow_client(paths, "ab" * 32)
    paths.keys.chmod(0o755)
    for use in (lambda: read_pair(paths.keys / SERVER), lambda: allowed_clients(paths)):
        with pytest.raises(UserError, match="it is not used"):
            use()


def test_an_allow_list_that_others_can_write_allows_nobody(paths: DaemonPaths):
    allow_client(paths, "ab" * 32)
    (paths.keys / ALLOWED).chmod(0o666)
    with pytest.raises(UserError, match="it is not used"):
        allowed_clients(paths)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_another_users_key_is_not_used(paths: DaemonPaths):
    make_keys(paths)
    os.chown(paths.keys / SERVER, 12345, -1)
    with pytest.raises(UserError, match="belongs to another user"):
        read_pair(paths.keys / SERVER)


def test_links_and_damage_are_not_followed(paths: DaemonPaths, tmp_path: Path):
    make_keys(paths)
    key = paths.keys / SERVER
    key.rename(tmp_path / "elsewhere")
    key.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="cannot be read"):
        read_pair(key)
    key.unlink()
    with pytest.raises(UserError, match="no such key"):
        read_pair(key)
    first, second = read_pair(paths.keys / CLIENT), "12" * 32
    for text in ("", "public x\nsecret y\n", f"public {second}\nsecret {first.secret}\n", "\0" * 100):
        key.unlink(missing_ok=True)
        os.close(os.open(key, os.O_CREAT | os.O_WRONLY, 0o600))
        key.write_text(text)
        with pytest.raises(UserError, match="holds no pair"):
            read_pair(key)


def test_the_allow_list(paths: DaemonPaths):
    a, b = "ab" * 32, "cd" * 32
    assert allowed_clients(paths) == {}
    assert allow_client(paths, a.upper(), "laptop") == "laptop" and allow_client(paths, b) == "client2"
    assert allow_client(paths, a) == "laptop"  # again: its name stays
    with pytest.raises(UserError, match="another key is called laptop"):
        allow_client(paths, b, "laptop")
    for key in ("", "xy" * 32, "ab" * 31, "ab" * 33, "../../etc"):
        with pytest.raises(UserError, match="is not a key"):
            allow_client(paths, key)
    with pytest.raises(UserError, match="is not a name"):
        allow_client(paths, a, "two words\nand " + b)
    assert allowed_clients(paths) == {a: "laptop", b: "client2"}
    assert revoke_client(paths, "laptop") == "laptop" and revoke_client(paths, b) == "client2"
    with pytest.raises(UserError, match="no allowed client"):
        revoke_client(paths, "laptop")
    assert allowed_clients(paths) == {}
    allow_client(paths, a)
    with (paths.keys / ALLOWED).open("a") as f:
        f.write("something else entirely\n")
    with pytest.raises(UserError, match="not a key and its name"):
        allowed_clients(paths)


def test_pinned_daemons(paths: DaemonPaths):
    trust_daemon(paths, "tcp://box:7777", "ab" * 32)
    trust_daemon(paths, "[::1]:80", "cd" * 32)
    trust_daemon(paths, "box:7777", "ef" * 32)
    assert trusted_daemons(paths) == {"box:7777": "ef" * 32, "[::1]:80": "cd" * 32}
    for address in ("box", "box:0", "box:65535", "box:99999", "tcp://", "ipc:///x", "a b:1", "http://box:1", ":1"):
        with pytest.raises(UserError, match="is not an address"):
            split_address(address)


@pytest.mark.parametrize(
    "line", ["zz" * 32 + " box:7777", "ab" * 31 + " box:7777", "ab" * 32, "cd" * 32 + " box:80", "# mine"]
)
def test_a_damaged_list_of_daemons_is_not_guessed_at_nor_written_over(paths: DaemonPaths, line: str):
    trust_daemon(paths, "box:80", "ab" * 32)
    with (paths.keys / TRUSTED).open("a") as f:
        f.write(f"{line}\n")
    with pytest.raises(UserError, match=r"KEY HOST:PORT"):
        trusted_daemons(paths)
    with pytest.raises(UserError, match=r"KEY HOST:PORT"):
        trust_daemon(paths, "other:80", "ab" * 32)
    assert line in (paths.keys / TRUSTED).read_text()


def test_a_lock_that_another_holds_for_long_is_said(paths: DaemonPaths, monkeypatch):
    allow_client(paths, "ab" * 32)
    monkeypatch.setattr(keys, "LOCK_SECONDS", 0.1)
    with (paths.keys / LOCK).open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another command has been changing the keys"):
            allow_client(paths, "cd" * 32)
    assert allow_client(paths, "cd" * 32) == "client2"


def test_where_a_disk_knows_no_locks_keys_are_changed_without(paths: DaemonPaths, monkeypatch):
    def flock(*of: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(keys.fcntl, "flock", flock)
    assert allow_client(paths, "ab" * 32) == "client1" and len(allowed_clients(paths)) == 1


@pytest.mark.process
def test_of_changes_at_once_none_is_lost(paths: DaemonPaths):
    allow = "import sys; from pathlib import Path; from daemon.wire.keys import allow_client\n"
    allow += "from daemon.wire.paths import DaemonPaths\n"
    allow += "for i in range(10): allow_client(DaemonPaths(*map(Path, sys.argv[2:])), f'{sys.argv[1]}{i}' * 32)"
    folders = [str(folder) for folder in (paths.runtime, paths.state, paths.config)]
    running = [subprocess.Popen([sys.executable, "-c", allow, letter, *folders], cwd=ROOT) for letter in "abcd"]
    assert [process.wait() for process in running] == [0] * 4
    found = allowed_clients(paths)
    assert found.keys() == {f"{letter}{i}" * 32 for letter in "abcd" for i in range(10)}
    assert sorted(found.values()) == sorted(f"client{n}" for n in range(1, 41))

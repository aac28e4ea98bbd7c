"""Who holds the lock and where its daemon is: what other versions and other shells read there."""

import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from daemon.processes.proc import identify
from daemon.wire.lock import PID_BYTES, Lock, LockHolder, read_holder, take_lock
from daemon.wire.paths import DaemonPaths, daemon_paths
from daemon.wire.protocol import PROTOCOL_VERSION
from presets import VERSION
from presets.errors import UserError


@pytest.fixture
def there(tmp_path: Path) -> DaemonPaths:
    return daemon_paths(tmp_path)


def held_with(there: DaemonPaths, content: bytes) -> int:
    """A descriptor that holds the lock with this content, as some daemon would."""
    there.state.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(there.lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content, 0)
    return descriptor


def test_it_tells_who_and_where(there: DaemonPaths):
    lock = take_lock(there, str(there.log))
    try:
        me = identify(os.getpid())
        holder = read_holder(there)
        assert (
            me
            and holder
            and (holder.pid, holder.start, holder.boot) == (me.pid, me.start, me.boot)
            and holder.process == me
            and not holder.is_stopped
        )
        assert (holder.version, holder.protocol, holder.log, holder.runtime) == (
            VERSION,
            PROTOCOL_VERSION,
            str(there.log),
            "",
        )
        lock.publish(Path("/somewhere/much longer than what stood there before"))
        lock.publish(Path("/else"))
        assert read_holder(there).runtime == "/else"
        assert there.lock.stat().st_mode & 0o777 == 0o600
        assert (holder := read_holder(there)) and holder.log_text(holder.log) == f"Its log: {there.log}"
        lock.tell("", "what it says goes to the moon")
        assert (holder := read_holder(there)) and (holder.log, holder.runtime) == ("", "/else")
        assert holder.log_text("/x") == "It writes no log file: what it says goes to the moon."
    finally:
        lock.close()
    assert read_holder(there) is None and there.lock.exists()  # left behind, and held by nobody


def test_a_disk_that_is_read_only_is_told_as_that(there: DaemonPaths):
    before = take_lock(there)
    before.publish(Path("/here"))
    before.close()
    lock = Lock(os.open(there.lock, os.O_RDONLY), there, "", "")  # as on such a disk
    with pytest.raises(OSError, match=rf"Read-only file system: '{there.lock}'"):
        lock.publish(Path("/else"))
    lock.close()


def test_its_form_is_the_same_in_every_version(there: DaemonPaths):
    lock = take_lock(there)
    data = there.lock.read_bytes()
    lock.close()
    assert data[:32].decode().strip() == str(os.getpid())  # all that 0.1.0 reads
    assert data[PID_BYTES - 1 : PID_BYTES] == b"\n" and json.loads(data[PID_BYTES:])["pid"] == os.getpid()


def test_an_older_and_a_newer_one_are_read(there: DaemonPaths):
    os.close(held := held_with(there, b""))
    held = held_with(there, b"4321\n")
    assert read_holder(there) == LockHolder(pid=4321)
    os.close(held)
    held = held_with(there, b"4321".ljust(31) + b'\n{"pid": 4321, "runtime": "/r", "from": "the future"}\nmore of it\n')
    assert read_holder(there) == LockHolder(pid=4321, runtime="/r")
    os.close(held)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"nonsense", b"12\n{torn", b'12\n{"pid": 13}\n', b"\xff\xfe\n\xff", b"0" * 100_000],
    ids=range(7),
)
def test_a_held_lock_that_cannot_be_read_is_held_all_the_same(there: DaemonPaths, content: bytes):
    held = held_with(there, content)
    assert read_holder(there).pid == 0
    with pytest.raises(UserError, match=r"another daemon \(pid unknown\)"):
        take_lock(there)
    os.close(held)


def test_what_a_daemon_that_was_killed_left_behind_counts_for_nothing(there: DaemonPaths):
    os.close(held_with(there, f"{os.getppid()}\n".encode()))  # its pid is another process by now
    assert read_holder(there) is None
    take_lock(there).close()
    assert read_holder(daemon_paths(there.state / "nowhere")) is None


def test_clients_that_look_keep_no_daemon_from_starting(there: DaemonPaths):
    there.state.mkdir(parents=True)
    there.lock.touch()
    looking = there.lock.open()
    fcntl.flock(looking, fcntl.LOCK_SH)
    threading.Timer(0.3, looking.close).start()
    take_lock(there).close()


def test_a_second_daemon_is_told_who_the_first_is(there: DaemonPaths):
    code = (
        "from pathlib import Path\nfrom daemon.wire.lock import take_lock\nfrom daemon.wire.paths import daemon_paths\n"
        f"x = take_lock(daemon_paths(Path({str(there.state.parent)!r})))\nprint(flush=True)\ninput()"
    )
    first = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None and first.stdout.readline() == b"\n"
        with pytest.raises(UserError, match=rf"another daemon \(pid {first.pid}\) already serves"):
            take_lock(there)
    finally:
        first.kill()
        first.communicate()
    take_lock(there).close()  # a kill -9 lets go of it

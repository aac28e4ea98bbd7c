"""The way back: sockets and folders that are taken away, by a logout or by another daemon, while real clients look
on."""

import asyncio
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daemon.errors import DaemonError, NotRunning
from daemon.wire.blocking import ping
from daemon.wire.client import Client
from daemon.wire.find import find
from daemon.wire.protocol import Beat, Welcome
from tests.daemon.conftest import until
from tests.helpers import ROOT
from tests.helpers.interface.forked_daemon import start_daemon
from tests.helpers.tiers import thorough
from tests.helpers.waiting import PATIENCE


def taken(folder: Path) -> None:
    """Take a folder away, with whatever is in it by then: the daemon takes and puts files there at the same time."""
    shutil.rmtree(folder, ignore_errors=True)


class Users:
    """The daemon of a user who has logged in: sockets in $XDG_RUNTIME_DIR, records in $XDG_STATE_HOME. It is found by
    these variables."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch, state: str = "state") -> None:
        self.run, self.state = home / "run", home / state
        self.run.mkdir(mode=0o700, exist_ok=True)
        self._variables, self._monkeypatch = (
            {
                "XDG_RUNTIME_DIR": str(self.run),
                "XDG_STATE_HOME": str(self.state),
            },
            monkeypatch,
        )
        self.look_from_here()
        self.log = home / f"{state}.out"
        with self.log.open("ab") as log:
            self.process = start_daemon([], cwd=ROOT, environment=os.environ, out=log.fileno())

    def look_from_here(self) -> None:
        for name, value in self._variables.items():
            self._monkeypatch.setenv(name, value)

    async def answer(self, folder: Path | None = None) -> Path:
        """Wait until it and no other answers, in this folder if one is given. Gives the folder."""

        def there() -> Path | None:
            try:
                pid = ping().pid
            except NotRunning:
                return None
            where = find().where.runtime
            return where if pid == self.process.pid and folder in (None, where) else None

        return await until(there, f"an answer in {folder}; the daemon said:\n{self.log.read_text()}")

    async def end(self) -> None:
        self.process.terminate()
        assert await asyncio.to_thread(self.process.wait, PATIENCE) == 0, self.log.read_text()


@pytest.fixture
async def users(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Users]:
    users = Users(short_dir, monkeypatch)
    await users.answer(users.run / "wanlora")
    yield users
    if users.process.poll() is None:
        await users.end()


async def test_a_logout_and_a_login(users: Users):
    for _ in range(3):
        taken(users.run)
        spare = await users.answer()  # there is no folder that it could make again, and it is reachable
        assert spare.parent == Path("/tmp") and stat.S_IMODE(spare.stat().st_mode) == 0o700 and not users.run.exists()
        users.run.mkdir(mode=0o700, exist_ok=True)
        await users.answer(users.run / "wanlora")
    assert len([line for line in users.log.read_text().splitlines() if "WARNING" in line]) == 1  # not one a second
    await users.end()
    assert not spare.exists() and not list((users.run / "wanlora").iterdir())


@pytest.mark.parametrize("gone", [["control.sock"], ["."], *thorough(["feed.sock"], ["control.sock", "feed.sock"])])
async def test_sockets_or_their_folder_alone(users: Users, gone: list[str]):
    folder = users.run / "wanlora"
    for name in gone:
        shutil.rmtree(folder) if name == "." else (folder / name).unlink()
    await until(lambda: (folder / "control.sock").exists() and (folder / "feed.sock").exists())
    await users.answer(folder)
    async with Client() as client:
        async for message in client.feed():
            if isinstance(message, Beat):
                break


async def test_removed_again_and_again_it_holds_no_more_open_than_before(users: Users):
    def descriptors() -> int:
        return len(os.listdir(f"/proc/{users.process.pid}/fd"))  # noqa: PTH208

    before = descriptors()
    for _ in range(4):
        taken(users.run / "wanlora")
        await until(lambda: (users.run / "wanlora/feed.sock").exists())
        await users.answer(users.run / "wanlora")
    await until(lambda: descriptors() <= before + 2)


async def test_who_is_connected_stays_and_a_feed_goes_on(users: Users):
    async with Client(timeout=PATIENCE) as client:
        epoch = (await client.hello()).epoch
        feed = client.feed()
        assert (await anext(feed)).epoch == epoch
        for step in (
            lambda: taken(users.run),
            lambda: users.run.mkdir(mode=0o700, exist_ok=True),
            lambda: taken(users.run / "wanlora"),
        ):
            step()
            assert (await client.hello()).epoch == epoch  # at once, without a retry of ours
            assert isinstance(await asyncio.wait_for(anext(feed), PATIENCE), (Beat, Welcome))
        await feed.aclose()


async def test_two_state_folders_that_share_a_runtime_directory(
    users: Users, short_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each client reaches the daemon of its own jobs, and neither daemon takes the sockets of the other."""
    second = Users(short_dir, monkeypatch, "second")
    try:
        spare = await second.answer()
        assert spare != users.run / "wanlora" and "another daemon serves there" in second.log.read_text()
        users.look_from_here()
        assert await users.answer() == users.run / "wanlora"
        (users.run / "wanlora/control.sock").unlink()
        await users.answer(users.run / "wanlora")
        second.look_from_here()
        assert await second.answer() == spare
    finally:
        await second.end()


async def test_a_socket_that_another_process_has_put_in_its_place(users: Users):
    code = (
        "import os, zmq\ns ="
        f" zmq.Context().socket(zmq.ROUTER)\ns.bind('ipc://{users.run}/x')\nos.rename('{users.run}/x',"
        f" '{users.run}/wanlora/control.sock')\nprint(flush=True)\ninput()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None and other.stdout.readline() == b"\n"
        await until(lambda: find().where.runtime != users.run / "wanlora")
        await users.answer()
    finally:
        other.kill()
        other.communicate()
    await users.answer(users.run / "wanlora")  # nobody listens there any more


async def test_killed_and_started_again_while_the_runtime_directory_is_away(
    users: Users, short_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    users.process.kill()
    users.process.wait()
    with pytest.raises(NotRunning, match="no daemon is running"):
        ping()
    again = Users(short_dir, monkeypatch)
    await again.answer(again.run / "wanlora")  # over the sockets that the dead one left
    await again.end()
    with pytest.raises(DaemonError, match="no daemon is running"):
        ping()

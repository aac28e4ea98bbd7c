"""A run of another machine whose daemon does not answer: its folder there tells what it says, over the connection."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec
import pytest

from daemon.wire.client import Client
from tests.helpers.interface.runs import usual
from tests.helpers.sshd import ALIAS, OtherMachine, needs_sshd
from tests.helpers.waiting import until_async
from tests.wanlora_tui.feeds.test_run_feed import followed, record_of
from tests.wanlora_tui.remote.conftest import lonely  # noqa: F401
from wanlora_tui.feeds import folder_events
from wanlora_tui.feeds.last_seen import LastSeenFile
from wanlora_tui.feeds.run_feed import RunFeed
from wanlora_tui.remote.connection import Connection, connected
from wanlora_tui.remote.far_process import FarProcess
from wanlora_tui.transfer.over_ssh import FarPieces

pytestmark = needs_sshd


@pytest.fixture
def there(lonely: OtherMachine, tmp_path: Path) -> Iterator[Connection]:  # noqa: F811
    with connected(ALIAS, tmp_path / "state", "", daemon=False) as connection:
        yield connection


async def test_the_folder_there_tells_the_run_to_its_end_and_again_after_a_cut(
    there: Connection,
    lonely: OtherMachine,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(folder_events, "PIECE", 100)  # bytes: many pieces, and lines that are longer than one
    tape = usual(until=60)
    file = tape.write(lonely.home / tape.name)
    record = record_of(tape, lonely.home)
    pieces = FarPieces(there)
    feed = RunFeed(Client(tmp_path / "none"), record, LastSeenFile(tmp_path / "seen"), pieces=pieces)
    async with followed(feed):
        await until_async(lambda: feed.view.last_seq == len(tape.events), "all events")
        assert (feed.view.step, feed.view.run) == (60, "run-orbit_v1")
        await asyncio.to_thread(lonely.cut)
        before = len(tape.events)
        tape.add("done", step=300, files=[], seconds=93.0)
        with file.open("ab") as f:
            f.write(msgspec.json.encode(tape.events[before]) + b"\n")
        await until_async(lambda: feed.view.state == "done", "the end, over the line that was dialled anew")
        assert "cannot be read" not in feed.problem, "that its machine was away is told elsewhere"
        assert pieces._files is not None
        feed.apply(record)  # a sign of life of the daemon
        await until_async(lambda: pieces._files is None, "the end of the channel")


class ClosedMeanwhile(FarPieces):
    """Whose user leaves as soon as the program there has begun, before anybody has its channel."""

    def __init__(self, there: Connection) -> None:
        super().__init__(there)
        self.begun: list[FarProcess] = []
        start = there.start

        def started(argv: Sequence[str], stdin: bytes | IO[bytes] | int | None = None) -> FarProcess:
            self.begun.append(start(argv, stdin))
            self.close()
            return self.begun[-1]

        there.start = started  # type: ignore[method-assign]


def test_a_channel_that_is_closed_while_it_opens_is_not_kept(there: Connection, lonely: OtherMachine):  # noqa: F811
    pieces = ClosedMeanwhile(there)
    (lonely.home / "a").write_bytes(b"0123456789")
    with pytest.raises(ConnectionError, match="closed"):
        pieces.read(lonely.home / "a", 0, 10)
    (process,) = pieces.begun
    assert process._process.poll() is not None and pieces._files is None


def test_what_cannot_be_read_there_is_an_error(there: Connection, lonely: OtherMachine):  # noqa: F811
    pieces = FarPieces(there)
    with pytest.raises(FileNotFoundError):
        pieces.read(lonely.home / "none", 0, 10)
    with pytest.raises(OSError, match="cannot be read"):
        pieces.read(lonely.home, 0, 10)
    (lonely.home / "a").write_bytes(b"0123456789")
    assert pieces.read(lonely.home / "a", 4, 3) == (b"456", 10)
    assert pieces.read(lonely.home / "a", 12, 3) == (b"", 10)
    pieces.close()

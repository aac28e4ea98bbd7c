"""The first connection to a daemon on another machine, by what answers there. All else: tests.daemon.tcp."""

import asyncio
import gc
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zmq

from daemon.errors import DaemonError
from daemon.wire import network
from daemon.wire.keys import SERVER, make_keys, read_pair, trust_daemon
from daemon.wire.network import Route, reached
from daemon.wire.paths import daemon_paths, endpoint
from tests.helpers.waiting import until

GREETING = 64  # bytes


class Flaky:
    """What lies on the way to a daemon that encrypts: it hangs up on the first connections, and lets the rest pass."""

    def __init__(self, to: int) -> None:
        self.to, self.hang_ups, self.after = to, 0, 0
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._listener.accept()
                self.connections += 1
                there = socket.create_connection(("127.0.0.1", self.to))
                cut = self.after if self.connections <= self.hang_ups else None
                for ends in ((here, there, None), (there, here, cut)):
                    thread = threading.Thread(target=self._copy, args=ends)
                    self._threads.append(thread)
                    thread.start()

    def _copy(self, a: socket.socket, b: socket.socket, most: int | None) -> None:
        """Until one of them ends, or so many bytes have passed."""
        with suppress(OSError):
            while most != 0 and (data := a.recv(65536 if most is None else most)):
                most = None if most is None else most - len(data)
                b.sendall(data)
        for one in (a, b):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            if one is a:  # the other one is closed by who reads it
                one.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def way(tmp_path: Path) -> Iterator[tuple[Flaky, Route]]:
    here, there = daemon_paths(tmp_path / "here"), daemon_paths(tmp_path / "there")
    make_keys(here)
    make_keys(there)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as daemon:
        daemon.curve_server = True
        daemon.curve_publickey, daemon.curve_secretkey = read_pair(there.keys / SERVER).bytes
        flaky = Flaky(daemon.bind_to_random_port("tcp://127.0.0.1"))
        address = f"tcp://127.0.0.1:{flaky.port}"
        trust_daemon(here, address, read_pair(there.keys / SERVER).public)
        yield flaky, Route(address, here)
        flaky.close()


def test_nothing_of_the_way_is_left_when_it_ends_while_clients_wait(
    way: tuple[Flaky, Route], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """Python that ends while a thread is at work in libzmq may crash: it is waited for, on a busy machine too."""
    flaky, _ = way

    async def slowly(self: network._Relay, end=network._Relay.end):
        await asyncio.sleep(0.2)
        await end(self)

    monkeypatch.setattr(network._Relay, "end", slowly)
    with zmq.Context() as context:
        with reached(f"tcp://127.0.0.1:{flaky.port}", tmp_path / "here") as folder:
            for n, name in enumerate(["control", "control", "feed"]):
                client = context.socket(zmq.SUB if name == "feed" else zmq.DEALER)
                client.linger = 0
                client.connect(endpoint(getattr(daemon_paths(folder), name)))
                if name == "feed":
                    client.subscribe(b"")
                else:
                    client.send(b"a question that nobody answers")
                    until(lambda n=n: flaky.connections == n + 2)  # the first one only looked whether it can be reached
        assert not folder.exists()
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("network: ")]
        context.destroy(linger=0)
    gc.collect()
    assert not caplog.records, "a task was left unfinished"


@pytest.mark.parametrize("after", [1, GREETING, GREETING + 50])
def test_a_handshake_that_is_broken_off_without_a_word_is_tried_again(way: tuple[Flaky, Route], after: int):
    """As by a daemon that has too many clients at this moment, before, in and after its greeting."""
    flaky, route = way
    flaky.hang_ups, flaky.after = 3, after
    route.require_way()
    assert flaky.connections == 4


def test_what_never_ends_a_handshake_is_no_daemon_of_ours(way: tuple[Flaky, Route]):
    flaky, route = way
    flaky.hang_ups, flaky.after = 1000, GREETING
    with pytest.raises(DaemonError, match="does not have the key that was pinned"):
        route.require_way()
    assert flaky.connections >= 4

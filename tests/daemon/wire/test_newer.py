"""A client that is newer than its daemon, and the reverse: what one side does not know is passed over."""

import subprocess
import sys
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import msgspec
import pytest

from daemon.errors import DaemonError
from daemon.protocol_page import messages, structs_in
from daemon.wire import protocol as wire
from daemon.wire.blocking import read_reply
from daemon.wire.client import Client
from daemon.wire.paths import daemon_paths
from tests.daemon.conftest import Box
from tests.daemon.wire.test_protocol import Raw

UNKNOWN = {"of_a_newer_version": {"deep": [1, {"x": None}]}, "zz": "text"}


def example(kind: Any) -> Any:
    """A value of a type, with something in every list and map, and more than the type knows in every message."""
    origin, args = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        values = {f.encode_name: example(f.type) for f in msgspec.structs.fields(kind)}
        if kind.__struct_config__.array_like:
            return [*values.values(), "more"]
        tag = kind.__struct_config__.tag
        return values | UNKNOWN | ({"type": tag} if tag else {})
    if origin in (Union, types.UnionType):
        return example(args[0])
    if origin is tuple and args[-1] is not Ellipsis:
        return [example(arg) for arg in args]
    if origin in (list, tuple):
        return [example(args[0])]
    if origin is dict:
        return {example(args[0]): example(args[1])}
    if args:  # Literal
        return args[0]
    return {int: 1, float: 1.5, str: "s", bool: True}.get(kind, {"any": 1})


@pytest.mark.parametrize(
    ("kind", "around"),
    [
        (kind, around)
        for around, kinds in messages().items()
        for kind in kinds
        if around != "Around every request and answer"
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_unknown_fields_are_passed_over_at_every_level(kind: type[msgspec.Struct], around: str):
    plain = example(kind)
    wrapped = {
        "Requests": {"version": wire.PROTOCOL_VERSION, "id": "i", "command": plain} | UNKNOWN,
        "Answers": {"version": wire.PROTOCOL_VERSION, "id": "i", "answer": plain} | UNKNOWN,
        "Feed messages": plain,
    }[around]
    decoder = {"Requests": wire.request_decoder, "Answers": wire.reply_decoder, "Feed messages": wire.feed_decoder}
    read = decoder[around].decode(msgspec.msgpack.encode(wrapped))
    inner = read.command if around == "Requests" else read.answer if around == "Answers" else read
    assert isinstance(inner, kind)
    for field in msgspec.structs.fields(kind):
        assert structs_in(field.type) or getattr(inner, field.name) == plain[field.encode_name]


async def test_a_newer_client_is_understood_and_what_is_new_is_refused(box: Box):
    box.start()
    raw = Raw(box)
    try:
        request = {"version": wire.PROTOCOL_VERSION, "id": "a", "command": {"type": "Jobs"} | UNKNOWN} | UNKNOWN
        assert (await raw.ask(msgspec.msgpack.encode(request))).answer == wire.JobsReply([])
        request["command"] = {"type": "Teleport", "job": "1"}
        refused = (await raw.ask(msgspec.msgpack.encode(request))).answer
        assert isinstance(refused, wire.Refused) and "Teleport" in refused.what and "Upgrade" in refused.fix
    finally:
        raw.close()


def test_an_answer_of_a_newer_kind_is_an_error_with_words():
    data = msgspec.msgpack.encode({"version": wire.PROTOCOL_VERSION, "id": "i", "answer": {"type": "Newer"}})
    with pytest.raises(DaemonError, match="cannot read") as told:
        read_reply(data, "i")
    assert "Upgrade" in told.value.fix


async def test_a_newer_daemons_feed_is_followed(short_dir: Path):
    """It publishes kinds of messages that we do not know, and more in those that we do."""
    where = daemon_paths(short_dir)
    where.runtime.mkdir(parents=True, mode=0o700)
    known = msgspec.msgpack.encode({"type": "Welcome", "epoch": "e"} | UNKNOWN)
    unknown = msgspec.msgpack.encode({"type": "Aurora", "job": []})
    script = (
        f"import zmq\ns = zmq.Context().socket(zmq.XPUB)\ns.bind('ipc://{where.feed}')\nprint(flush=True)\ns.recv()\n"
        f"for _ in range(3):\n    s.send({unknown!r}); s.send({known!r})\ninput()"
    )
    other = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    client = Client(short_dir)
    try:
        assert other.stdout is not None and other.stdout.readline()
        feed = client.feed()
        assert [await anext(feed) for _ in range(3)] == [wire.Welcome("e")] * 3
        await feed.aclose()
    finally:
        client._close()
        other.kill()
        other.communicate()

"""Values that no message carries: a user's error, before anything is sent."""

from collections.abc import Awaitable, Callable

import pytest

from daemon.errors import DaemonError
from daemon.wire.client import Client
from presets.errors import UserError
from presets.machine.shell import shell_here

ODD: dict[str, Callable[[Client], Awaitable[object]]] = {
    "a name that is half a character": lambda client: client.show("\ud800"),
    "a path that is not UTF-8": lambda client: client.submit("/tmp/caf\udce9.toml"),
    "a folder that is not UTF-8": lambda client: client.submit("/tmp/job.toml", "/tmp/\udce9"),
    "a job to come after": lambda client: client.submit("/tmp/job.toml", after=["\ud800"]),
    "a priority of 80 bits": lambda client: client.submit("/tmp/job.toml", priority=2**80),
    "a step of 80 bits": lambda client: client.resume("a", 2**80),
    "a priority below all": lambda client: client.set_priority("a", -(2**64)),
    "events since for ever": lambda client: client.replay("a", 2**64),
    "a value": lambda client: client.set("a", "training.lr", "\udfff"),
    "a new name": lambda client: client.rename("a", "\ud800"),
}


@pytest.mark.parametrize("ask", ODD.values(), ids=ODD)
async def test_what_cannot_be_sent_is_a_users_error(short_dir, ask):
    client = Client(short_dir)  # there is no daemon: it is not asked
    with pytest.raises(DaemonError, match=r"is not UTF-8, so it cannot be sent|too large for any") as refused:
        await ask(client)
    str(refused.value).encode()
    client._close()


def test_a_setting_of_the_shell_that_is_not_utf_8_is_named_and_not_shown():
    with pytest.raises(UserError, match="the variable HF_TOKEN is not UTF-8") as refused:
        shell_here({"HF_TOKEN": "hf_secret\udcff"})
    assert "secret" not in str(refused.value)

"""docs/protocol.md: made from the message types, whole, and its client works."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import msgspec

from daemon.protocol_page import answers, comments, messages, page
from daemon.wire import protocol as wire
from tests.daemon.conftest import Box
from tests.helpers import ROOT
from tests.helpers.waiting import PATIENCE


def test_the_page_is_up_to_date():
    assert (ROOT / "docs" / "protocol.md").read_text("utf-8") == page(), "stale: make docs"


def test_each_message_and_each_of_its_fields_has_a_sentence():
    made, without = page(), []
    for kind in (*(kind for kinds in messages().values() for kind in kinds), wire.JobRecord, wire.RunBeat):
        rows = re.search(rf"^### {kind.__name__}\n\n(\S.*?)(?=^##|\Z)", made, re.M | re.S)
        if rows is None:
            without.append(kind.__name__)
            continue
        for field in msgspec.structs.fields(kind):
            if not re.search(rf"^\| `{field.encode_name}` \| [^|]+ \| [^|]+ \| \S", rows[1], re.M):
                without.append(f"{kind.__name__}.{field.name}")
    assert without == []


def test_each_request_has_its_answer():
    assert set(answers()) == {kind.__name__ for kind in get_args(wire.Command)}
    assert set(answers().values()) <= {kind.__name__ for kind in get_args(wire.Answer)}


class Commented(msgspec.Struct):
    """An example."""

    a: int  # behind it
    # above it,
    # in two lines
    b: str = "# no comment"
    c: dict[str, int] = msgspec.field(default_factory=dict)  # behind several lines
    d: int = 0


def test_comments_are_found_where_they_stand():
    assert comments(Commented) == {
        "a": "behind it",
        "b": "above it, in two lines",
        "c": "behind several lines",
        "d": "",
    }


async def test_the_client_of_the_page_follows_a_job_to_its_end(box: Box, tmp_path: Path):
    text = (ROOT / "docs" / "protocol.md").read_text("utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.S)
    assert code is not None and len([line for line in code[1].splitlines() if line.strip()]) <= 30
    assert set(re.findall(r"^(?:import|from) (\w+)", code[1], re.M)) <= {"json", "pathlib", "zmq", "msgspec"}
    program = tmp_path / "client.py"
    program.write_text(code[1])
    box.start()
    async with box.client() as client:
        await client.submit(box.job("first", steps=3))
        await box.wait(client, "first")
        await client.submit(box.job("one", steps=30))
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, str(program), str(box.dir / "state"), "one"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[0] == "1 first done" and re.fullmatch("2 one (starting|running|queued|done)", lines[1])
        told = [(int(line.split()[0]), line.split()[1]) for line in lines[2:]]
        assert told == [(event.seq, event.kind) for event in await client.replay("one")] and told[-1][1] == "done"
        refused = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, str(program), str(box.dir / "state"), "nothing"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert refused.returncode == 1 and "nothing" in refused.stderr

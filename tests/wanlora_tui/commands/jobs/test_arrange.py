"""priority, move, hold, release, remove, rename and submit's options, as commands with a real daemon."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.interface.harness import own_daemon, until, wanlora, write_job
from wanlora_tui.cli import parser
from wanlora_tui.commands.common import ask


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with own_daemon() as folder:
        yield folder


def told(folder: Path) -> dict[str, dict]:
    return {r["name"]: r for r in json.loads(wanlora("jobs", "--json", "--dir", folder).stdout)}


def order(folder: Path) -> list[str]:
    queued = [r for r in told(folder).values() if r["state"] == "queued"]
    return [r["name"] for r in sorted(queued, key=lambda r: (-r["priority"], r["order"]))]


def test_the_queue_is_arranged_by_commands(folder: Path, tmp_path: Path):
    def run(*line: str) -> str:
        said = wanlora(*line, "--dir", folder)
        assert said.returncode == 0, said.stderr
        return said.stderr

    def refused(*line: str) -> str:
        said = wanlora(*line, "--dir", folder)
        assert said.returncode in (1, 2) and "Traceback" not in said.stderr, said
        return said.stderr

    def submit(name: str, steps: int = 10, **options: object) -> None:
        path = write_job(tmp_path, name, steps=steps, pace_ms=20)
        ask(folder, lambda daemon: daemon.submit(path, **options))

    submit("first", 100_000)
    until(lambda: told(folder)["first"]["state"] == "running", "the first job")
    submit("a")
    submit("b", hold=True)
    submit("c", after=["a", "b"])
    submit("d", priority=-1)
    assert order(folder) == ["a", "b", "c", "d"]
    assert "d: moved. It waits at position 1. It takes priority 0 there." in run("move", "d", "before", "a")
    assert order(folder) == ["d", "a", "b", "c"]
    for line, words in (
        (("move", "d", "before"), "before needs another job"),
        (("move", "d", "first", "a"), "first takes no other job"),
        (("move", "first", "last"), "is running, so it cannot be moved"),
        (("move", "d", "upwards"), "invalid choice"),
        (("priority", "d", "high"), "not a whole number"),
        (("hold", "first"), "is running, so it cannot be held"),
        (("submit", "a.toml", "--after", "a,"), "is no list of jobs"),
        (("remove", "first"), "is running, so it stays in the list"),
        (("rename", "d", "no/good"), "job.name"),
    ):
        assert words in refused(*line), line
    assert wanlora("move", "d", "after", "--dir", folder).returncode == 2
    assert "priority 3. It waits at position 1." in run("priority", "a", "3")
    assert "a: On hold." in run("hold", "a")
    table = wanlora("jobs", "--dir", folder)
    rows = table.stdout.splitlines()
    assert rows[0].split()[:4] == ["ID", "NAME", "PRIORITY", "STATE"] and "WHEN" in rows[0]
    assert "‖ held" in rows[2] and "queued, after #2, #3" in rows[4]
    assert "a (#2): On hold." in table.stderr
    assert told(folder)["a"]["starts_at"] is None and told(folder)["first"]["starts_at"] > 0
    assert "a: no longer held. It waits at position 1." in run("release", "a")
    assert "c: no longer held. It waits for #2 and #3. To let it go without that, add --anyway." in run("release", "c")
    assert "c: no longer held. It waits at position" in run("release", "c", "--anyway")
    assert "d is called e now. Its run folder will be" in run("rename", "d", "e")
    assert "Its run folder and files keep the name first: it has begun." in run("rename", "first", "label")
    said = wanlora("remove", "b", "label", "c", "--dir", folder)
    assert said.returncode == 1 and "b (#3): removed from the list" in said.stderr
    assert "label: is running" in said.stderr and "c (#4): removed" in said.stderr
    assert list(told(folder)) == ["label", "a", "e"]
    run("cancel", "a")
    run("cancel", "e")
    run("cancel", "#1")


def test_what_submit_takes():
    args = parser().parse_args(["submit", "a.toml", "--after", "a,#2", "--after", "id:3", "--priority", "-1", "--hold"])
    assert (args.after, args.priority, args.hold) == (["a", "#2", "id:3"], -1, True)
    args = parser().parse_args(["submit", "a.toml"])
    assert (args.after, args.priority, args.hold) == ([], None, False)

"""Commands and messages at the end of a job, as a user gives and tries them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from presets.job.toml_file import load_job
from tests.daemon.followup.conftest import Receiver, receiver  # noqa: F401
from tests.helpers.interface.harness import own_daemon, until, wanlora
from tests.helpers.jobs import write_job as plain_job


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with own_daemon() as folder:
        yield folder


def test_a_job_is_submitted_with_its_commands(folder: Path, tiny: Path, tmp_path: Path):
    job = plain_job(tmp_path, tiny, prompts=1, clips=2, steps=5)
    name = load_job(job).job.name
    command = f'echo "$WANLORA_JOB $WANLORA_STATE" >{tmp_path}/told'
    said = wanlora("submit", job, "--dir", folder, "--on-done", command, "--on-failed", "")
    assert said.returncode == 0 and "daemon restart" not in said.stderr, said
    assert wanlora("wait", name, "--dir", folder).returncode == 0
    assert until(lambda: (tmp_path / "told").exists() and (tmp_path / "told").read_text(), "the command") == (
        f"{name} done\n"
    )
    [record] = json.loads(wanlora("jobs", "--json", "--dir", folder).stdout)
    assert record["commands"] == ["done", "failed"]


def test_those_who_are_told_can_be_tried(folder: Path, receiver: Receiver):  # noqa: F811
    said = wanlora("daemon", "notify-test", "--dir", folder)
    assert said.returncode == 1 and "[[notify]]" in said.stderr
    (folder / "settings.toml").write_text(f'[[notify]]\nkind = "ntfy"\nurl = "{receiver.url}/t"\n')
    said = wanlora("daemon", "notify-test", "--dir", folder)
    assert (said.returncode, said.stdout) == (0, "ntfy (ntfy): ok, answered 200: thank you\n")
    receiver.codes, receiver.heard[:] = [403], []
    said = wanlora("daemon", "notify-test", "ntfy", "--dir", folder)
    assert said.returncode == 1 and said.stdout.startswith("ntfy (ntfy): FAILED, answered 403")
    (folder / "settings.toml").unlink()


def test_what_is_wrong_stands_first(folder: Path):
    (folder / "settings.toml").write_text("[when]\non_done = 5\n")
    said = wanlora("daemon", "status", "--dir", folder)
    assert said.returncode == 1
    assert said.stdout.startswith("Problem: the settings cannot be read: ") and "The daemon runs in" in said.stdout
    told = json.loads(wanlora("daemon", "status", "--json", "--dir", folder).stdout)
    assert told["healthy"] is False and "settings.toml" in told["problems"][0] and told["problem"] == ""
    assert told["state"] == "answering" and told["health"]["table_writable"] is True
    (folder / "settings.toml").unlink()
    sound = wanlora("daemon", "status", "--dir", folder)
    assert sound.returncode == 0 and "Problem" not in sound.stdout and " of RAM, " in sound.stdout, sound


def test_the_idle_command_is_announced(folder: Path):
    (folder / "settings.toml").write_text("[idle]\ncommand = 'true'\nminutes = 90\nafter_start = true\n")
    said = until(lambda: (found := wanlora("jobs", "--dir", folder)).stderr.count("idle command") and found, "the word")
    assert re.search(r"the idle command runs in 1h \d+m, unless a job is submitted", said.stderr), said
    assert "The idle command runs in 1h" in wanlora("daemon", "status", "--dir", folder).stdout
    (folder / "settings.toml").unlink()

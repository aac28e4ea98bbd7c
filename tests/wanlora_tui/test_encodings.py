"""Outputs that cannot show every sign: no command breaks, JSON stays JSON, logs are UTF-8, the screens say what to
do."""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pexpect
import psutil
import pytest

from daemon.wire.client import Client
from presets.job.toml_file import load_job, save_job, with_value
from tests.helpers import ROOT
from tests.helpers.interface.harness import environment, own_daemon, short_dir, wanlora, write_job
from tests.helpers.tiers import thorough
from tests.helpers.videos import write_clip
from tests.helpers.waiting import PATIENCE

ENCODINGS = ["ascii", *thorough("latin-1")]
NAME = "Ünï ✓"  # of a folder: é and ü are in latin-1, the tick is not


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with own_daemon() as folder:
        yield folder


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job with signs of many alphabets, in a folder whose name has them, too."""
    place = tmp_path_factory.mktemp("encodings") / NAME
    (place / "clips é").mkdir(parents=True)
    write_clip(place / "clips é" / "日本.mp4", frames=48)
    (place / "clips é" / "日本.txt").write_text("[trigger], ein Mädchen läuft → links …", "utf-8")
    said = wanlora("new", "--kind", "motion", "--clips", place / "clips é", "--out", place / "jöb.toml")
    assert said.returncode == 0, said.stderr
    return place / "jöb.toml"


class Said(NamedTuple):
    code: int
    out: bytes
    text: str  # of both streams


def run(encoding: str, *args: str | Path, **more: str) -> Said:
    """The real command with both streams in an encoding; it may refuse, and never breaks."""
    done = subprocess.run(
        [sys.executable, "-m", "wanlora_tui.cli", *map(str, args)],
        cwd=ROOT,
        env=environment(PYTHONIOENCODING=f"{encoding}:strict", **more),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    text = (done.stdout + done.stderr).decode("utf-8" if "--json" in args else encoding)
    assert text and "Traceback" not in text and "UnicodeEncodeError" not in text, text
    return Said(done.returncode, done.stdout, text)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_no_command_breaks_and_json_stays_json(job: Path, folder: Path, tmp_path: Path, encoding: str):
    cache = {"XDG_CACHE_HOME": str(tmp_path / "ça ✓")}
    out = tmp_path / "nöu ✓.toml"
    made = run(encoding, "new", "--kind", "style", "--clips", job.parent / "clips é", "--out", out, **cache)
    assert made.out.decode(encoding).endswith({"ascii": "nou +.toml\n", "latin-1": "nöu +.toml\n"}[encoding])
    for command in (
        ("check", job),
        ("plan", job),
    ):
        assert run(encoding, *command, **cache).code in (0, 1), command
    json.loads(run(encoding, "check", job, "--json", **cache).out.decode("utf-8"))


@pytest.mark.thorough
def test_no_other_command_breaks(job: Path, folder: Path, tmp_path: Path):
    """As those above print through the same streams, one encoding does."""
    cache = {"XDG_CACHE_HOME": str(tmp_path / "ça ✓")}
    for command in (
        ("timesteps", job),
        ("cache",),
        ("doctor",),
        ("jobs", "--dir", folder),
        ("checkpoints", job),
        ("train", job.with_name("✗ keine.toml")),
        ("ara", job.parent / "✗ keine"),
    ):
        assert run("ascii", *command, **cache).code in (0, 1), command
    for command in (("timesteps", job, "--json"), ("cache", "list", "--json")):
        json.loads(run("ascii", *command, **cache).out.decode("utf-8"))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_job_is_followed(folder: Path, tmp_path: Path, encoding: str):
    place = tmp_path / NAME
    place.mkdir()
    name = f"job_{encoding.replace('-', '')}"
    path = write_job(place, name, steps=2)
    save_job(with_value(load_job(path), "job.trigger", "mädchen ✓"), path)

    async def submit() -> None:
        async with Client(folder) as client:
            await client.submit(path)

    asyncio.run(submit())
    assert run(encoding, "watch", name, "--plain", "--dir", folder).code == 0
    events = run(encoding, "watch", name, "--json", "--dir", folder).out.decode("utf-8").splitlines()
    assert json.loads(events[0])["data"]["job"]["job"]["trigger"] == "mädchen ✓"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_daemon_and_its_trainers_log_in_utf8_whatever_the_shell_asks_for(encoding: str):
    folder = short_dir()
    env = environment(PYTHONIOENCODING=encoding)
    try:
        assert wanlora("daemon", "start", "--dir", folder, env=env).returncode == 0
        status = json.loads(wanlora("daemon", "status", "--json", "--dir", folder, env=env).stdout)
        assert psutil.Process(status["pid"]).environ()["PYTHONIOENCODING"].startswith("utf-8")
    finally:
        wanlora("daemon", "stop", "--dir", folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_screens_are_refused_where_their_signs_cannot_be_shown(folder: Path, encoding: str):
    terminal = pexpect.spawn(
        sys.executable,
        ["-m", "wanlora_tui.cli", "--dir", str(folder)],
        cwd=str(ROOT),
        env=environment(PYTHONIOENCODING=encoding),
        encoding="utf-8",
        timeout=PATIENCE,
        dimensions=(24, 200),
    )
    said = terminal.read()
    terminal.close()
    assert terminal.exitstatus == 1 and "Traceback" not in said
    assert "the output's encoding" in said and "LANG=C.UTF-8" in said and f"wanlora --dir {folder} watch" in said

"""fetch over a real sshd: what comes, what goes on after a cut, what leaving keeps."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.wire.client import Client
from tests.helpers.interface.harness import own_daemon, write_job
from tests.helpers.interface.harness import wanlora as run_wanlora
from tests.helpers.sshd import ALIAS, OtherMachine, needs_sshd
from tests.helpers.waiting import PATIENCE, until
from tests.wanlora_tui.commands.far.test_elsewhere import wanlora
from wanlora_tui.commands.common import ask

pytestmark = [needs_sshd, pytest.mark.process]
SIZE = 3_000_000


@pytest.fixture
def run(box: OtherMachine) -> Path:
    """The run folder of a job that is done, with large LoRA files."""
    return finished(box.daemon_dir, box.home)


def finished(daemon: Path, folder: Path) -> Path:
    async def go() -> None:
        async with Client(daemon) as client:
            record = await client.submit(write_job(folder, "far_v1", steps=20))
            while (await client.show(record.id)).state != "done":
                await asyncio.sleep(0.05)

    asyncio.run(go())
    run = folder / "runs/far_v1"
    for expert in ("high", "low"):
        (run / f"far_v1_{expert}_noise.safetensors").write_bytes(os.urandom(SIZE))
    return run


def loras(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("far_v1_*_noise.safetensors")}


def test_a_fetch_survives_cuts_and_goes_on_after_ctrl_c(box: OtherMachine, run: Path, here: Path):
    box.relay.bytes_per_second = 1_500_000
    command = [sys.executable, "-m", "wanlora_tui.cli", "--dir", str(here / "own"), "fetch", "--host", ALIAS]
    begun = subprocess.Popen(
        command,
        cwd=here,
        env=box.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    part = here / "far_v1/far_v1_high_noise.safetensors.part"
    until(lambda: part.exists() and part.stat().st_size > 500_000, "the first bytes")
    os.killpg(begun.pid, signal.SIGINT)
    _, said = begun.communicate(timeout=PATIENCE)
    assert begun.returncode == 130 and "the same command goes on" in said, said
    kept = part.stat().st_size
    assert kept > 500_000
    again = subprocess.Popen(
        command, cwd=here, env=box.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until(lambda: part.exists() and part.stat().st_size > kept + 200_000, "more bytes")
    box.cut()
    out, said = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0 and "The connection was cut" in said, said
    assert loras(here / "far_v1") == loras(run)
    assert sorted(out.split()) == [f"far_v1/far_v1_{e}_noise.safetensors" for e in ("high", "low")]
    assert f"from {ALIAS}:{run}" in said and "Fetched 2 files, 5.7 MiB, into far_v1" in said
    box.relay.bytes_per_second = 0
    # once more: all of it is here; the report beside it; and a file of one's own stays
    said2 = wanlora(box, here, "fetch", "far_v1", "--host", ALIAS, "--to", "far_v1")
    assert said2.returncode == 0 and "2 files were here already" in said2.stderr, said2.stderr
    said2 = wanlora(box, here, "fetch", "far_v1", "--what", "report", "--host", ALIAS)
    names = {"events.jsonl", "job.toml", "findings.json"}
    assert said2.returncode == 0 and names < {p.name for p in (here / "far_v1").iterdir()}, said2.stderr
    (here / "far_v1/job.toml").write_text("mine")
    said2 = wanlora(box, here, "fetch", "far_v1", "--what", "report", "--host", ALIAS)
    assert said2.returncode == 1 and "not fetched job.toml" in said2.stderr and "--overwrite" in said2.stderr
    assert (here / "far_v1/job.toml").read_text() == "mine"


def test_a_job_of_this_machine_is_copied(here: Path, tmp_path: Path):
    with own_daemon() as daemon:
        run = finished(daemon, tmp_path)
        said = run_wanlora("fetch", "--dir", daemon, cwd=here)
        assert said.returncode == 0 and loras(here / "far_v1") == loras(run), said.stderr
        said = run_wanlora("fetch", "--dir", daemon, "--to", run, cwd=here)
        assert said.returncode == 1 and "is the run folder itself" in said.stderr
        said = run_wanlora("fetch", "--dir", daemon, "--what", "previews", "--step", "7", cwd=here)
        assert said.returncode == 1 and "nothing of step 7" in said.stderr, said.stderr
        ask(daemon, lambda client: client.submit(write_job(tmp_path, "not_begun"), hold=True))
        said = run_wanlora("fetch", "not_begun", "--dir", daemon, cwd=here)
        assert said.returncode == 1 and "not_begun: has not begun" in said.stderr, said.stderr

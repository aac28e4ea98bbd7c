"""A real daemon in a directory of its own, and the proof that nothing of it is left behind."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.errors import NotRunning
from daemon.processes.proc import MARKER
from daemon.wire.blocking import ping
from daemon.wire.client import Client
from daemon.wire.protocol import ENDED_STATES, LIVE_STATES, JobRecord
from tests.helpers import ROOT
from tests.helpers.interface.commands import Command
from tests.helpers.interface.forked_daemon import start_daemon
from tests.helpers.waiting import PATIENCE
from tests.helpers.waiting import until as until_blocking
from tests.helpers.waiting import until_async as until

FAKE = ROOT / "tests" / "helpers" / "fake_trainer.py"


class Box:
    """One daemon's directory."""

    def __init__(self, dir: Path) -> None:
        self.dir = dir
        self.process: Command | subprocess.Popen[bytes] | None = None
        self.trainer: list[str] = []
        self.program: list[str] = []  # another one than the daemon

    def start(self, *trainer_options: str, command: list[str] | None = None) -> int:
        """Start the daemon with the fake trainer, and wait for its answer. Gives its pid."""
        if trainer_options or command or not self.trainer:
            self.trainer = command or [sys.executable, str(FAKE), *trainer_options]
        with (self.dir / "daemon.out").open("ab") as log:
            arguments = ["--dir", str(self.dir), "--trainer", *self.trainer]
            if self.program:
                self.process = subprocess.Popen(
                    [sys.executable, *self.program, *arguments], stdout=log, stderr=log, start_new_session=True
                )
            else:
                self.process = start_daemon(arguments, cwd=Path.cwd(), environment=os.environ, out=log.fileno())
        return until_blocking(self._pid, "the daemon's answer")

    def _pid(self) -> int | None:
        """That of the daemon, once it answers."""
        assert self.process is not None and self.process.poll() is None, self.log()
        try:
            return ping(self.dir).pid
        except NotRunning:
            return None

    def kill9(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def client(self, **options) -> Client:
        return Client(self.dir, **options)

    def log(self) -> str:
        return (self.dir / "daemon.out").read_text()

    def job(self, name: str, *, steps: int = 20, gpus: list[int] | None = None) -> Path:
        path = self.dir / "jobs" / f"{name}.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            f'[job]\nname = "{name}"\ngpus = {gpus or [0]}\n[training]\nsteps = {steps}\n[[datasets]]\npath ='
            ' "clips"\n[[sample.prompts]]\nprompt = "p"\n'
        )
        return path

    def run_dir(self, name: str) -> Path:
        return self.dir / "jobs" / "runs" / name

    async def wait(self, client: Client, job: int | str, *states: str) -> JobRecord:
        """Wait until a job is in one of the states (default: until it has ended)."""

        async def there():
            record = await client.show(job)
            return record if record.state in (states or ENDED_STATES) else None

        return await until(there, f"job {job} becoming {states or 'ended'}; the daemon said:\n{self.log()}")

    def processes(self) -> dict[int, str]:
        """Everything that lives and belongs to this directory: daemons and trainers."""
        found = {}
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                try:
                    command = Path(f"/proc/{entry.name}/cmdline").read_bytes()
                    environment = Path(f"/proc/{entry.name}/environ").read_bytes()
                except OSError:
                    continue
                if f"{MARKER}={self.dir}/".encode() in environment or str(self.dir).encode() in command:
                    found[int(entry.name)] = command.replace(b"\0", b" ").decode()
        return found

    async def tear_down(self) -> None:
        if self.process is None:
            return
        try:
            ping(self.dir, timeout=PATIENCE)
        except NotRunning:
            self.start()
        async with self.client() as client:
            for record in await client.jobs():
                if record.state in LIVE_STATES:
                    await client.cancel(record.id)
            for record in await client.jobs():
                await self.wait(client, record.id)
            await client.shutdown()
        await until(lambda: not self.processes(), f"all processes gone: {self.processes()}")
        self.process.wait()
        left = [path.name for path in (self.dir / "run").glob("*") if path.is_socket()]
        assert not left, f"sockets are left in the runtime folder: {left}"


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """Socket paths have 107 bytes, too few for tmp_path on some machines."""
    dir = Path(tempfile.mkdtemp(prefix="wl", dir="/tmp"))
    yield dir
    shutil.rmtree(dir)


@pytest.fixture
async def box(short_dir: Path) -> Iterator[Box]:
    box = Box(short_dir)
    yield box
    await box.tear_down()


@pytest.fixture
def waiting() -> Callable:
    return until

"""One command of the user: started once, in a session of its own, and watched until it ends or its time is over.

It outlives the daemon. A folder that it makes as its first act says that it has begun, a file in it with what exit code
it ended; so the next daemon neither starts it again nor loses sight of it.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import psutil

from daemon.background_io import BackgroundIO
from daemon.processes.proc import ProcessId, identify, send
from presets.errors import UserError

MARKER = "WANLORA_FOLLOW_UP"  # in its environment, so that all its processes can be found again
LOOK = 0.2  # seconds between two looks at our own child
LOOK_FAR = 1.0  # and at one of the last daemon's, for which all processes are looked through
GRACE = 3.0  # seconds between SIGTERM and SIGKILL

# $1: the folder that says that it has begun, $2: the command. A full disk, which takes no folder, must not stop it.
_SCRIPT = """\
mkdir "$1" 2>/dev/null || [ ! -d "$1" ] || exit 0
/bin/sh -c "$2"
code=$?
echo $code >"$1/code.part" && mv "$1/code.part" "$1/code"
exit $code
"""


class CommandEnd(NamedTuple):
    text: str  # what became of it, for people
    good: bool


async def run_command(
    command: str,
    *,
    begun: Path,
    environment: dict[str, str],
    log: Path,
    spare_log: Path,
    seconds: float,
    background: BackgroundIO,
) -> CommandEnd:
    """Run it, or watch the one that runs already, and say what came of it. `begun`: its folder, for it alone. `log`:
    where its output goes; where that cannot be, into `spare_log`. Raises nothing that a command or a disk can cause.
    """
    marker = str(begun)
    child: subprocess.Popen[bytes] | None = None
    ran, where = time.monotonic(), log  # the clock of the wall may be set meanwhile
    try:
        if await background(begun.is_dir, what=marker):
            ran -= max(0.0, time.time() - (await background(begun.stat, what=marker)).st_mtime)
        else:
            try:  # in the background: the disk of the run may be lost. The start itself needs the state folder alone.
                output = await background(partial(_new_file, log), what=str(log))
            except (OSError, UserError):
                output, where = _spare_output(spare_log)
            with output:
                child = _start(command, begun, environment | {MARKER: marker}, output)
    except (OSError, ValueError) as e:
        return CommandEnd(f"could not be started: {e}", False)
    said = f" Its output: {where}"
    while (code := child.poll() if child is not None else _code_in(begun)) is None:
        if child is None and not _processes(marker):
            code = _code_in(begun)  # it may have ended between the two looks
            if code is None:
                return CommandEnd(f"was broken off, and is not run again.{said}", False)
            break
        if time.monotonic() - ran > seconds:
            await _end(marker)
            if child is not None:
                child.poll()
            return CommandEnd(f"was ended after {seconds:.0f} s.{said}", False)
        await asyncio.sleep(LOOK if child is not None else LOOK_FAR)
    if code < 0:
        return CommandEnd(f"was killed by signal {-code}.{said}", False)
    return CommandEnd(f"ended with exit code {code}.{said}", code == 0)


def forget(begun: Path) -> None:
    """To be called when what came of it is on record."""
    shutil.rmtree(begun, ignore_errors=True)


def _start(command: str, begun: Path, environment: dict[str, str], output: BinaryIO) -> subprocess.Popen[bytes]:
    with suppress(OSError):
        begun.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return subprocess.Popen(
        ["/bin/sh", "-c", _SCRIPT, "sh", str(begun), command],
        cwd="/",
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _new_file(path: Path) -> BinaryIO:
    """In place of whatever has that name; nothing is written through a link."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    return os.fdopen(descriptor, "wb")


def _spare_output(spare_log: Path) -> tuple[BinaryIO, Path]:
    try:
        spare_log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _new_file(spare_log), spare_log
    except OSError:
        nowhere = Path(os.devnull)
        return nowhere.open("wb"), nowhere


def _code_in(begun: Path) -> int | None:
    try:
        return int((begun / "code").read_text())
    except (OSError, ValueError):
        return None


def _processes(marker: str) -> list[ProcessId]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it ended, or belongs to another user
            if process.environ().get(MARKER) == marker:
                found.append(identify(process.pid))
    return [p for p in found if p is not None]


async def _end(marker: str) -> None:
    for process in _processes(marker):
        send(process, signal.SIGTERM)
    ends = time.monotonic() + GRACE
    while (left := _processes(marker)) and time.monotonic() < ends:
        await asyncio.sleep(LOOK)
    for process in left:
        send(process, signal.SIGKILL)

"""How long a user waits: `wanlora --help`, and the terminal interface until its first whole frame.

    python -m benchmarks.cold_start [--runs N]

The frames are timed on a real pseudo-terminal of 80x24: from the start of the process until the footer is on the
screen, and of jobs and of a run also what the daemon tells of them, as a terminal emulator (pyte) sees it. The daemon
runs before the clock does, as it does for every start but the first. The run is the tests' recorded one of 2400 steps.
On a busy machine the CPU seconds that the process has taken until then are the fairer measure.
"""

import argparse
import os
import pty
import select
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Sequence
from fcntl import ioctl
from pathlib import Path

import psutil
import pyte

from tests.helpers.recorded_run import write_for_daemon

ROWS, COLUMNS = 24, 80
FRAME_LIMIT = 30.0  # seconds
PALETTE = "▏:"  # its key stands at the right of the footer, with its name where there is room
# what is shown -> the arguments, words that are there then, and what the footer ends in, which is painted last
FRAMES = {
    "first frame": ((), "", PALETTE),
    "jobs": ((), "noisy_v1", PALETTE),
    "dashboard": (("attach", "noisy_v1"), "2400/2400", "Help"),
}
WANLORA = [sys.executable, "-m", "wanlora_tui.cli"]
IMPORT_LINES = 12


def time_help() -> float:
    begin = time.perf_counter()
    subprocess.run([*WANLORA, "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def time_first_frame(folder: Path, arguments: Sequence[str], words: str, last_word: str) -> tuple[float, float]:
    """Seconds until the first whole frame with `words`, by the clock and of CPU; the interface is then closed."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    master, slave = pty.openpty()
    ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, ROWS * 20, COLUMNS * 10))
    begin = time.perf_counter()
    process = subprocess.Popen(
        [*WANLORA, *arguments, "--dir", str(folder)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        env=os.environ | {"TERM": "xterm-256color"},
        preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    seen = spent = 0.0
    while time.perf_counter() - begin < FRAME_LIMIT:
        if select.select([master], [], [], 0.5)[0]:
            data = os.read(master, 65536)
            if b"\x1b[c" in data:  # "what are you?": every terminal answers, and the program waits for it
                os.write(master, b"\x1b[?62;22c")
            stream.feed(data.replace(b"\x1b[16t", b"").replace(b"\x1b[>q", b""))
            if last_word in screen.display[-1] and words in "".join(screen.display):
                seen = time.perf_counter() - begin
                times = psutil.Process(process.pid).cpu_times()
                spent = times.user + times.system
                break
    os.write(master, b"q")
    while process.poll() is None and select.select([master], [], [], 10)[0]:
        try:
            os.read(master, 65536)
        except OSError:  # the other side is closed
            break
    process.wait(10)
    os.close(master)
    if not seen:
        raise SystemExit("no frame came:\n" + "\n".join(screen.display))
    return seen, spent


def costly_imports(arguments: list[str]) -> list[str]:
    """The most expensive imports of a command, milliseconds each with all that they pull in."""
    traced = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    rows = []
    for line in traced.stderr.splitlines():
        parts = line.removeprefix("import time:").split("|")
        if len(parts) == 3 and parts[1].strip().isdigit():
            rows.append((int(parts[1]), parts[2].strip()))
    return [f"{us / 1000:8.1f} ms  {name}" for us, name in sorted(rows, reverse=True)[:IMPORT_LINES]]


def tell(name: str, times: Sequence[float]) -> None:
    print(
        f"{name:<18} median {statistics.median(times):.3f} s   best {min(times):.3f} s   worst {max(times):.3f} s  "
        f" ({len(times)} runs)"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    folder = Path(tempfile.mkdtemp(prefix="wl", dir="/tmp"))
    try:
        write_for_daemon(folder, "noisy_v1", "noisy_v2")
        subprocess.run([*WANLORA, "daemon", "start", "--dir", str(folder)], check=True, stderr=subprocess.DEVNULL)
        for frame in FRAMES.values():
            time_first_frame(folder, *frame)  # the first one fills the disk cache, and the daemon's
        tell("wanlora --help", [time_help() for _ in range(runs)])
        for name, frame in FRAMES.items():
            seen, spent = zip(*(time_first_frame(folder, *frame) for _ in range(runs)), strict=True)
            tell(name, seen)
            tell(f"{name}, CPU", spent)
    finally:
        subprocess.run([*WANLORA, "daemon", "stop", "--dir", str(folder)], check=True, stderr=subprocess.DEVNULL)
        shutil.rmtree(folder)
    for title, arguments in (
        ("wanlora --help", ["-m", "wanlora_tui.cli", "--help"]),
        ("the interface", ["-c", "import wanlora_tui.app"]),
    ):
        print(f"\nmost expensive imports of {title}:")
        print("\n".join(costly_imports(arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

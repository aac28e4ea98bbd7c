"""How long a user waits: `wanlora --help`, and the terminal interface until its first whole frame.

    python benchmarks/cold_start.py [--runs N]

The frame is timed on a real pseudo-terminal of 80x24: from the start of the process until the footer is on the screen,
as a terminal emulator (pyte) sees it. The daemon runs before the clock does, as it does for every start but the first.
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
from fcntl import ioctl
from pathlib import Path

import pyte

ROWS, COLUMNS = 24, 80
FRAME_LIMIT = 30.0  # seconds
LAST_WORD = "palette"  # stands at the end of the footer, which is painted last
WANLORA = [sys.executable, "-m", "wanlora_tui.cli"]
IMPORT_LINES = 12


def time_help() -> float:
    begin = time.perf_counter()
    subprocess.run([*WANLORA, "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def time_first_frame(folder: Path) -> float:
    """Seconds until the first whole frame; the interface is then closed with `q`."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    master, slave = pty.openpty()
    ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, ROWS * 20, COLUMNS * 10))
    begin = time.perf_counter()
    process = subprocess.Popen(
        [*WANLORA, "--dir", str(folder)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        env=os.environ | {"TERM": "xterm-256color"},
        preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    seen = 0.0
    while time.perf_counter() - begin < FRAME_LIMIT:
        if select.select([master], [], [], 0.5)[0]:
            data = os.read(master, 65536)
            if b"\x1b[c" in data:  # "what are you?": every terminal answers, and the program waits for it
                os.write(master, b"\x1b[?62;22c")
            stream.feed(data.replace(b"\x1b[16t", b"").replace(b"\x1b[>q", b""))
            if LAST_WORD in screen.display[-1]:
                seen = time.perf_counter() - begin
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
    return seen


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    folder = Path(tempfile.mkdtemp(prefix="wl", dir="/tmp"))
    try:
        subprocess.run([*WANLORA, "daemon", "start", "--dir", str(folder)], check=True, stderr=subprocess.DEVNULL)
        time_first_frame(folder)  # the first one fills the disk cache
        for name, times in (
            ("wanlora --help", [time_help() for _ in range(runs)]),
            ("first frame", [time_first_frame(folder) for _ in range(runs)]),
        ):
            print(
                f"{name:<16} median {statistics.median(times):.3f} s   best {min(times):.3f} s   worst {max(times):.3f}"
                f" s   ({runs} runs)"
            )
    finally:
        subprocess.run([*WANLORA, "daemon", "stop", "--dir", str(folder)], check=True, stderr=subprocess.DEVNULL)
        shutil.rmtree(folder)
    for title, arguments in (
        ("wanlora --help", ["-m", "wanlora_tui.cli", "--help"]),
        ("the interface", ["-c", "import wanlora_tui.app, textual_image.widget"]),
    ):
        print(f"\nmost expensive imports of {title}:")
        print("\n".join(costly_imports(arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

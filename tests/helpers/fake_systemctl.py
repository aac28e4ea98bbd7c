"""`systemctl --user`, `loginctl` and `crontab` as far as wanlora asks them: for machines, and tests, without.

Linked under these names into a folder of PATH; what it knows is in the folder that FAKE_SYSTEMD names: `calls`, every
command line; `pids/UNIT`; `enabled/UNIT`; `linger` with yes or no; `crontab`; `broken`, the words with which every
command of systemctl fails.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

STATE = Path(os.environ["FAKE_SYSTEMD"])
UNITS = Path(os.environ["XDG_CONFIG_HOME"]) / "systemd" / "user"


def pid_of(unit: str) -> int:
    try:
        pid = int((STATE / "pids" / unit).read_text())
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError):
        return 0
    return 0 if state == "Z" else pid


def start(unit: str) -> int:
    if pid_of(unit):
        return 0
    try:
        lines = (UNITS / unit).read_text(errors="surrogateescape").splitlines()
    except FileNotFoundError:
        print(f"Failed to start {unit}: Unit {unit} not found.", file=sys.stderr)
        return 5
    values = [line.partition("=")[::2] for line in lines if "=" in line and not line.startswith("#")]
    unquoted = [(name, shlex.split(value.replace("%%", "%"))) for name, value in values if '"' in value]
    command = next(words for name, words in unquoted if name == "ExecStart")
    variables = [words[0] for name, words in unquoted if name == "Environment"]
    process = subprocess.Popen(
        [word.replace("$$", "$") for word in command],
        cwd="/",
        env={"HOME": os.environ["HOME"], "XDG_RUNTIME_DIR": os.environ["XDG_RUNTIME_DIR"]}
        | dict(v.split("=", 1) for v in variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    (STATE / "pids").mkdir(exist_ok=True)
    (STATE / "pids" / unit).write_text(str(process.pid))
    return 0


def stop(unit: str) -> int:
    if pid := pid_of(unit):
        os.kill(pid, signal.SIGTERM)
        while pid_of(unit):
            time.sleep(0.02)
    return 0


def systemctl(words: list[str]) -> int:
    if (broken := STATE / "broken").exists():
        print(broken.read_text(), file=sys.stderr)
        return 1
    match words:
        case ["--user", "show-environment" | "daemon-reload"]:
            return 0
        case ["--user", "enable", unit]:
            (STATE / "enabled").mkdir(exist_ok=True)
            (STATE / "enabled" / unit).touch()
            return 0
        case ["--user", "disable", "--now", unit]:
            (STATE / "enabled" / unit).unlink(missing_ok=True)
            return stop(unit)
        case ["--user", "start", unit]:
            return start(unit)
        case ["--user", "stop", unit]:
            return stop(unit)
        case ["--user", "restart", unit]:
            return stop(unit) or start(unit)
        case ["--user", "is-active", unit]:
            print("active" if pid_of(unit) else "inactive")
            return 0 if pid_of(unit) else 3
        case ["--user", "show", "--property=MainPID", "--value", unit]:
            print(pid_of(unit))
            return 0
        case ["--user", "reset-failed", unit]:
            return 1
    print(f"Unknown command {words}", file=sys.stderr)
    return 1


def main() -> int:
    name, *words = Path(sys.argv[0]).name, *sys.argv[1:]
    with (STATE / "calls").open("a") as calls:
        calls.write(" ".join([name, *words]) + "\n")
    if name == "systemctl":
        return systemctl(words)
    if name == "loginctl":
        print((STATE / "linger").read_text())
        return 0
    table = STATE / "crontab"
    if words == ["-l"]:
        if not table.exists():
            print("no crontab for me", file=sys.stderr)
            return 1
        print(table.read_text(), end="")
    else:
        table.write_text(sys.stdin.read())
    return 0


if __name__ == "__main__":
    sys.exit(main())

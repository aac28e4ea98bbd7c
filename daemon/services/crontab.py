"""The daemon started by cron with the machine, where there is no systemd. Nobody starts it again when it dies: the next
command that needs it does."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from daemon.errors import DaemonError
from daemon.services.command_line import daemon_command, kept_variables

SECONDS = 30.0


def shell_line(dir: Path | None) -> str:
    """The daemon in the foreground, for a shell in any folder."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in kept_variables().items()]
    return " ".join(["env", *variables, *map(shlex.quote, daemon_command(dir))])


def cron_line(dir: Path | None) -> str:
    """For a crontab, where a percent sign is a line break."""
    return f"@reboot cd / && {_in_cron(shell_line(dir))} {_mark(dir)}"


def _mark(dir: Path | None) -> str:
    return f"# wanlora daemon{f' of {_in_cron(str(dir.absolute()))}' if dir else ''}"


def _in_cron(text: str) -> str:
    return text.replace("%", "\\%")


def is_there() -> bool:
    return shutil.which("crontab") is not None


def is_installed(dir: Path | None) -> bool:
    """Raises DaemonError."""
    return is_there() and any(line.endswith(_mark(dir)) for line in _lines())


def install(dir: Path | None) -> bool:
    """Whether something had to be changed. Raises DaemonError."""
    lines = _lines()
    wanted = [line for line in lines if not line.endswith(_mark(dir))] + [cron_line(dir)]
    if cron_line(dir) in lines and len(wanted) == len(lines):
        return False
    _write(wanted)
    return True


def uninstall(dir: Path | None) -> bool:
    """Whether there was something to take away. Raises DaemonError."""
    if not is_installed(dir):
        return False
    _write([line for line in _lines() if not line.endswith(_mark(dir))])
    return True


def _lines() -> list[str]:
    said = _crontab("-l")
    if said.returncode and "no crontab" not in said.stderr.lower():
        raise DaemonError(f"crontab -l failed: {said.stderr.strip() or said.returncode}")
    return said.stdout.splitlines() if not said.returncode else []


def _write(lines: list[str]) -> None:
    said = _crontab("-", "".join(f"{line}\n" for line in lines))
    if said.returncode:
        raise DaemonError(f"crontab refused the new table: {said.stderr.strip() or said.returncode}")


def _crontab(option: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    command = ["crontab", option]
    try:
        return subprocess.run(
            command,
            input=text,
            env=os.environ | {"LC_ALL": "C"},  # one of its answers is read
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        return subprocess.CompletedProcess(command, 1, "", str(e))

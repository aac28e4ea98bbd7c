"""The daemon as a service of the user's own systemd: its unit, and what is asked of `systemctl --user` and `loginctl`.

Where there is no systemd of the user, `trouble` says so, and nothing else here is to be called.
"""

import getpass
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import platformdirs

from daemon.errors import DaemonError
from daemon.services.command_line import daemon_command, kept_variables

SECONDS = 90.0  # for one answer: it may stop a daemon first that has an answer to finish
_TEXT = """\
# Written by `wanlora daemon install`, taken away by `wanlora daemon uninstall`.
[Unit]
Description=wanlora daemon{of}: queues trainings and watches them
StartLimitIntervalSec=300
StartLimitBurst=10

[Service]
Type=exec
ExecStart={command}
WorkingDirectory=/
{variables}Restart=on-failure
RestartSec=2
TimeoutStopSec=60
# Trainers are processes of this unit that outlive the daemon: the next one takes them over. So only the daemon itself
# is ended on stop and restart, and a trainer that runs out of memory takes nothing else with it.
KillMode=process
OOMPolicy=continue
TasksMax=infinity

[Install]
WantedBy=default.target
"""


def unit_name(dir: Path | None) -> str:
    """Of the daemon of `dir`; the user's own by default."""
    return (
        f"wanlora-{hashlib.sha256(os.fsencode(dir.absolute())).hexdigest()[:8]}.service" if dir else "wanlora.service"
    )


def unit_path(dir: Path | None) -> Path:
    return platformdirs.user_config_path("systemd") / "user" / unit_name(dir)


def unit_text(dir: Path | None) -> str:
    return _TEXT.format(
        of=f" of {_escaped(str(dir.absolute()))}" if dir else "",
        command=_command(dir),
        variables="".join(f"Environment={_quoted(f'{name}={value}')}\n" for name, value in kept_variables().items()),
    )


def _command(dir: Path | None) -> str:
    return " ".join(_quoted(word).replace("$", "$$") for word in daemon_command(dir))


def _escaped(text: str) -> str:
    return text.replace("%", "%%").replace("\n", " ")


def _quoted(word: str) -> str:
    """As systemd.syntax(7) reads it."""
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'.replace("%", "%%")


def is_installed(dir: Path | None) -> bool:
    return unit_path(dir).is_file()


def starts_another(dir: Path | None) -> bool:
    """Whether what systemd starts is the daemon of another installation than this one, such as an older one beside
    it."""
    try:
        return f"ExecStart={_command(dir)}" not in unit_path(dir).read_text(errors="replace").splitlines()
    except OSError:
        return False


def trouble() -> str:
    """Why no systemd of this user can be asked; "" when it can."""
    if shutil.which("systemctl") is None:
        return "there is no systemd here"
    said = _run("show-environment")
    if said.returncode == 0:
        return ""
    return f"systemd does not serve this user here: {_words(said)}"


def start(dir: Path | None) -> bool:
    """Whether systemd has started it, or had already."""
    return shutil.which("systemctl") is not None and _run("start", unit_name(dir)).returncode == 0


def is_starting(dir: Path | None) -> bool:
    """Whether its process runs, or is about to."""
    return _run("is-active", unit_name(dir)).stdout.strip() in ("active", "activating", "reloading")


def main_pid(dir: Path | None) -> int:
    """Of the daemon that systemd runs; 0 when it runs none."""
    if not is_installed(dir) or shutil.which("systemctl") is None:
        return 0
    said = _run("show", "--property=MainPID", "--value", unit_name(dir)).stdout.strip()
    return int(said) if said.isdecimal() else 0


def restart(dir: Path | None) -> None:
    """Raises DaemonError."""
    _ask("restart", unit_name(dir))


def stop(dir: Path | None) -> None:
    """Also what systemd would start again in a moment. Raises DaemonError."""
    _ask("stop", unit_name(dir))


def enable(dir: Path | None) -> None:
    """Read the unit anew, and start it with the machine from now on. Raises DaemonError."""
    _ask("daemon-reload")
    _ask("enable", unit_name(dir))


def disable(dir: Path | None) -> None:
    """End it, and do not start it any more. Raises DaemonError."""
    _ask("disable", "--now", unit_name(dir))


def forget(dir: Path | None) -> None:
    """To be called when its unit is gone. Raises DaemonError."""
    _ask("daemon-reload")
    _run("reset-failed", unit_name(dir))  # refused when it did not fail


def lingers() -> bool | None:
    """Whether systemd lets this user's processes live without a login; None when it does not say."""
    if shutil.which("loginctl") is None:
        return None
    said = _finished(["loginctl", "show-user", getpass.getuser(), "--property=Linger", "--value"])
    return {"yes": True, "no": False}.get(said.stdout.strip()) if said.returncode == 0 else None


def linger_command() -> str:
    return f"loginctl enable-linger {getpass.getuser()}"


def _ask(*words: str) -> None:
    said = _run(*words)
    if said.returncode:
        raise DaemonError(
            f"systemctl --user {' '.join(words)} failed: {_words(said)}",
            fix=f"See: systemctl --user status {words[-1]}" if len(words) > 1 else "",
        )


def _run(*words: str) -> "subprocess.CompletedProcess[str]":
    return _finished(["systemctl", "--user", *words])


def _finished(command: list[str]) -> "subprocess.CompletedProcess[str]":
    # a shell from su, cron or ssh may lack the variable that leads to it
    runtime = f"/run/user/{os.getuid()}"
    found = {"XDG_RUNTIME_DIR": runtime} if "XDG_RUNTIME_DIR" not in os.environ and Path(runtime).is_dir() else {}
    try:
        return subprocess.run(
            command,
            env=os.environ | found,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        return subprocess.CompletedProcess(command, 1, "", str(e))


def _words(said: "subprocess.CompletedProcess[str]") -> str:
    text = said.stderr.strip() or said.stdout.strip()
    return text.rpartition("\n")[2] or f"exit code {said.returncode}"

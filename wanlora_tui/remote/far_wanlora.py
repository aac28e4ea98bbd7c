"""wanlora on the other machine: where it is installed there, what its daemon says of itself, and starting that."""

import re
import shlex
import shutil
from pathlib import Path

import msgspec
from msgspec import Struct

from daemon.wire.protocol import PROTOCOL_VERSION
from presets import VERSION
from presets.atomic_file import write_file
from presets.errors import UserError
from wanlora_tui.remote.far_shell import harmless, last_line

HOSTS_FILE = "hosts.json"
NOT_FOUND = 127  # what shells say of a command that is not there
# Where it is looked for, after the place that it had last time: ssh's PATH is that of no login shell.
_USUAL = ("wanlora", "~/.local/bin/wanlora", "~/wanlora-tui/.venv/bin/wanlora")
_SHOWN = 200  # signs of an answer that was not understood


class FarStatus(Struct):
    """What is needed of `wanlora daemon status --json` there; other keys are passed over."""

    running: bool
    protocol: int = 0
    control: str = ""  # sockets, absolute paths there
    feed: str = ""
    state: str = ""  # "" up to 0.1.0
    version: str = ""
    problem: str = ""


def check_host(host: str) -> None:
    """Raises UserError on what ssh would not take for a host, and where there is no ssh."""
    if host.startswith("-") or not re.fullmatch(r"[^\s]+", host):
        raise UserError(f"{host!r} is not a host", fix="Write it as user@box, or as your ssh configuration names it")
    if shutil.which("ssh") is None:
        raise UserError("no ssh program here", fix="Install an OpenSSH client")


def status_script(given: str, remembered: str) -> str:
    """Prints the path of wanlora there, then what its daemon's status is. `given`: the user says where it is."""
    named = [given] if given else [*([remembered] if remembered else []), *_USUAL]
    tries = "; ".join(f"try {_word(name)}" for name in named)
    asked = "" if given else '; for shell in bash "$SHELL"; do for way in -lc -ic -lic; do login; done; done'
    return f"""
first= answer=
try() {{
    path=$(command -v "$1" 2>/dev/null) && [ -x "$path" ] || return
    said=$("$path" daemon status --json </dev/null)
    case $said in *'"running"'*) printf '%s\\n%s\\n' "$path" "$said"; exit 0;; esac
    [ "$first" ] || first=$path answer=$said
}}
login() {{
    try "$("$shell" $way 'echo; command -v wanlora' </dev/null 2>/dev/null | grep '^/.*/wanlora$' | tail -n 1)"
}}
{tries}{asked}
[ "$first" ] || exit {NOT_FOUND}
printf '%s\\n%s\\n' "$first" "$answer"
"""


def start_script(wanlora: str) -> str:
    """Starts the daemon as after a login: it hands the environment on to trainers."""
    start = f"exec {shlex.quote(wanlora)} daemon start"
    return f"command -v bash >/dev/null || {start}; exec bash -lc {shlex.quote(start)} </dev/null"


def _word(path: str) -> str:
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)


def read_status(host: str, code: int, said: str, words: str, given: str = "") -> tuple[str, FarStatus]:
    """The path of wanlora there and its daemon's status. `said`, `words`: stdout and stderr; `given`: where the user
    says that it is. Raises UserError."""
    if code == NOT_FOUND and given:
        raise UserError(
            f"no program {given} there",
            where=host,
            fix="Give --remote-wanlora the path that it has on that machine, or leave it out: it is searched for then",
        )
    if code == NOT_FOUND:
        raise UserError(
            "no wanlora found there: not on the PATH of ssh or of a login, nor in ~/.local/bin or ~/wanlora-tui",
            where=host,
            fix=f"Install it there, or say where it is: --host {host} --remote-wanlora PATH",
        )
    path, _, answer = said.strip("\n").partition("\n")
    try:
        return path, msgspec.json.decode(answer.strip().rpartition("\n")[2], type=FarStatus)
    except msgspec.MsgspecError:
        heard = last_line(answer) or last_line(words) or "nothing"
        raise UserError(
            f"`{path or 'wanlora'} daemon status --json` answered what this wanlora ({VERSION}) does not understand:"
            f" {heard[:_SHOWN]}",
            where=host,
            fix=f"Try: ssh {host} {path or 'wanlora'} doctor",
        ) from None


def require_ours(host: str, wanlora: str, status: FarStatus) -> None:
    """Raises UserError unless a daemon answers there that this client can talk to."""
    if status.state not in ("", "answering"):
        raise UserError(
            f"there {harmless(status.problem) or 'the daemon does not answer'}",
            where=host,
            fix=f"See: ssh {host} {wanlora} daemon status. End it with: ssh {host} {wanlora} daemon stop",
        )
    if status.protocol != PROTOCOL_VERSION:
        version = f" (wanlora {harmless(status.version)})" if status.version else ""
        raise UserError(
            f"the daemon there speaks protocol {status.protocol}{version}, this client {PROTOCOL_VERSION} (wanlora"
            f" {VERSION})",
            where=host,
            fix="Install the same version of wanlora on both machines",
        )
    if not (status.control.startswith("/") and status.feed.startswith("/")):
        raise UserError("the daemon there does not say where its sockets are", where=host, fix="Upgrade wanlora there")


class KnownHosts:
    """Where wanlora was found on each host, kept among the user's records. A lost file costs a search, no more."""

    def __init__(self, state_dir: Path) -> None:
        self._file = state_dir / HOSTS_FILE

    def _read(self) -> dict[str, str]:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=dict[str, str])
        except (OSError, msgspec.MsgspecError, UnicodeError):
            return {}

    def wanlora_of(self, host: str) -> str:
        return self._read().get(host, "")

    def remember(self, host: str, wanlora: str) -> None:
        """`wanlora`: its path there; "" forgets it."""
        known = self._read()
        if known.get(host, "") == wanlora:
            return
        known = {h: w for h, w in (known | {host: wanlora}).items() if w}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._file, msgspec.json.encode(known))
        except OSError:  # the next time it is looked for again
            return

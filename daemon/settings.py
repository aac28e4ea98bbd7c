"""What a user decides for the daemon once and for all jobs: settings.toml, read when it is needed, so that a change
counts without a restart. And the addresses and tokens beside it that nobody else may read: from files of the user's own
with mode 0600.

What a job file says about one job is presets.job's.
"""

import os
import shlex
import stat
import tomllib
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
import platformdirs
from msgspec import Meta, Struct, field

from presets.errors import UserError
from presets.files import open_regular, read_regular
from presets.job.toml_file import read_toml

SETTINGS_FILE = "settings.toml"
SECRETS_FILE = "secrets.toml"  # beside it
MAX_SETTINGS_BYTES = 2**18
MAX_SECRETS_BYTES = 2**16


class DaemonSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """[daemon]"""

    # what becomes of jobs that a restart of the machine or its container broke off: they wait for a user's word, and
    # the queue with them, or they continue by themselves before the others
    on_boot: Literal["ask", "resume"] = "ask"
    # how often a job starts again by itself after failures that may pass, without a new checkpoint in between
    restarts: Annotated[int, Meta(ge=0, le=1000)] = 3
    restart_delay: Annotated[float, Meta(ge=0, le=3600)] = 10.0  # seconds before the first of them; then twice as many
    roots: tuple[str, ...] = ()  # folders that clients may name paths in; none declared: see daemon.jobs.roots


class TcpSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """[tcp]"""

    # address:port for requests, the feed takes the port after it; "": not reached by network. See daemon.tcp
    listen: str = ""


Event = Literal["done", "failed", "stopped", "restarted"]  # what messages can be about


class WhenSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """[when]: what `/bin/sh` runs when a job has ended so, unless the job was submitted with a command of its own."""

    on_done: str = ""
    on_failed: str = ""
    on_stopped: str = ""  # also for a cancelled job
    minutes: Annotated[float, Meta(gt=0, le=1440)] = 10.0  # that any of these may take, then it is ended


class IdleSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """[idle]: one command, once, when nothing has been running or about to run for so long."""

    command: str = ""
    minutes: Annotated[float, Meta(gt=0)] = 30.0
    after_start: bool = False  # also when nothing has run since the daemon started


class NotifySettings(Struct, frozen=True, forbid_unknown_fields=True):
    """[[notify]]: who is told. Tokens, and addresses that are secrets themselves, are in secrets.toml, in a table of
    this one's name."""

    kind: Literal["webhook", "ntfy", "slack", "discord", "mail"]
    name: str = ""  # the kind, when left out
    url: str = ""  # http or https; for ntfy that of the topic
    to: str = ""  # mail: addresses, with commas between them
    sender: str = ""  # mail: the address in From; sendmail's own choice when left out
    sendmail: str = ""  # mail: the program, when it is not where it usually is
    token_file: str = ""  # a file that holds nothing but the token
    on: list[Event] = field(default_factory=lambda: ["done", "failed"])

    def __post_init__(self) -> None:
        if self.kind == "mail":
            if not self.to:
                raise ValueError("`to` is missing: mail needs an address")
            if self.url or self.token_file:
                raise ValueError("mail is handed to sendmail, so it has no `url` and no `token_file`")
        elif self.to or self.sender or self.sendmail:
            raise ValueError(f"`to`, `sender` and `sendmail` belong to mail, not to {self.kind}")
        if self.url:
            require_web_address(self.url)
            if self.kind in ("slack", "discord") or "@" in urlsplit(self.url).netloc:
                raise ValueError(
                    f"its `url` is a secret: whoever knows it can post there. Move it to {SECRETS_FILE} beside this"
                    f" file, as `url` in [{self.label}]"
                )

    @property
    def label(self) -> str:
        return self.name or self.kind


def require_web_address(url: str) -> None:
    """Raises ValueError, which does not hold the address."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("`url` is no address that begins with http:// or https://")


class TerminalSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """[terminal]: how the dashboard and watch call their user when a job is done or has failed."""

    bell: bool = True
    notify: bool = True  # a notification on the desktop, in terminals that can show one


class CostSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """[cost]: what the machine costs while it is on, for the estimates of plan, wizard and dashboard."""

    rate: Annotated[float, Meta(ge=0, le=100_000)] = 0.0  # per hour; 0: nothing is said of money
    currency: Annotated[str, Meta(max_length=8)] = "$"


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """All of the file; a missing one means all defaults."""

    daemon: DaemonSettings = field(default_factory=DaemonSettings)
    tcp: TcpSettings = field(default_factory=TcpSettings)
    when: WhenSettings = field(default_factory=WhenSettings)
    idle: IdleSettings = field(default_factory=IdleSettings)
    notify: list[NotifySettings] = field(default_factory=list)
    terminal: TerminalSettings = field(default_factory=TerminalSettings)
    cost: CostSettings = field(default_factory=CostSettings)

    def __post_init__(self) -> None:
        labels = [n.label for n in self.notify]
        if twice := next((label for label in labels if labels.count(label) > 1), ""):
            raise ValueError(f"two tables of `notify` are called {twice}: give each its own `name`")


def settings_file(dir: Path | None = None) -> Path:
    """Of the daemon of `dir`; the user's own by default."""
    return (dir or platformdirs.user_config_path("wanlora")) / SETTINGS_FILE


def load_settings(path: Path) -> Settings:
    """Raises UserError that names the key, or who else could have written there: it says which commands run."""
    try:
        _require_safe(path)
        text = read_regular(path, MAX_SETTINGS_BYTES).decode()
        return msgspec.convert(read_toml(text), Settings)
    except FileNotFoundError:
        return Settings()
    except UserError:
        raise
    except msgspec.ValidationError as e:
        problem = str(e).replace("`$.", "`").replace("`$`", "the file")
    except ValueError as e:
        problem = f"not valid TOML: {e}"
    except OSError as e:
        problem = f"cannot be read: {e.strerror or e}"
    fix = "Correct it, or move it away to use the defaults"
    if "unknown field `token`" in problem:
        fix = f"Tokens are in {SECRETS_FILE} beside it, as `token` in a table of that name, or in a `token_file`"
    raise UserError(problem, where=str(path), fix=fix)


def _require_safe(path: Path) -> None:
    """Raises UserError where everybody may write to the file or put another in its place; OSError."""
    for place, sticky in ((path, 0), (path.parent, stat.S_ISVTX)):
        mode = place.stat().st_mode
        if mode & stat.S_IWOTH and not mode & sticky:
            raise UserError(
                "every user may write there, and these settings say which commands run",
                where=str(place),
                fix=f"chmod o-w {shlex.quote(str(place))}, and see that nobody has changed them",
            )


# --- secrets ----------------------------------------------------------------------------------------------------


class Secret(Struct, frozen=True, forbid_unknown_fields=True):
    """A table of secrets.toml. Without a readable form, so that no log and no traceback shows it."""

    url: str = ""
    token: str = ""

    def __repr__(self) -> str:
        return "Secret(...)"


def load_secrets(path: Path) -> dict[str, Secret]:
    """Of each [[notify]], by its name. Raises UserError, which holds none of them."""
    try:
        return msgspec.convert(tomllib.loads(private_text(path)), dict[str, Secret])
    except FileNotFoundError:
        return {}
    except msgspec.ValidationError as e:
        problem = str(e).replace("`$.", "`").replace("`$`", "the file")
    except (tomllib.TOMLDecodeError, RecursionError):
        problem = "not valid TOML"  # the reader's own words could hold a part of it
    raise UserError(
        problem, where=str(path), fix="Each table has the name of a [[notify]], and holds `url` and `token`"
    )


def private_text(path: Path) -> str:
    """The text of a file that only its owner can read. Raises UserError; FileNotFoundError when there is none."""
    try:
        with open_regular(path) as f:
            facts = os.fstat(f.fileno())
            if facts.st_uid != os.getuid():
                raise UserError("holds secrets and belongs to another user", where=str(path))
            if stat.S_IMODE(facts.st_mode) & 0o077:
                raise UserError(
                    "holds secrets, and other users can read or change it",
                    where=str(path),
                    fix=f"chmod 600 {path}",
                )
            return (f.read(MAX_SECRETS_BYTES) or b"").decode()
    except FileNotFoundError:
        raise
    except UnicodeDecodeError:
        raise UserError("is not UTF-8", where=str(path)) from None
    except OSError as e:
        raise UserError(f"cannot be read: {e.strerror or e}", where=str(path)) from None

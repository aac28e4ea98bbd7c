"""Keys for clients that come through the network: the daemon's own pair, this user's pair as a client, which clients
are allowed, and which daemons are trusted.

All in one folder that only its owner may enter, each file readable by its owner alone; what is not so is not used. Keys
are Curve25519 ones as ZeroMQ's CURVE takes them, written in hexadecimal: 64 signs that no shell reads otherwise.
"""

import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import zmq
from zmq.utils import z85

from daemon.wire.paths import DaemonPaths, make_private
from presets.atomic_file import replacing
from presets.errors import UserError

SERVER, CLIENT, ALLOWED, TRUSTED = "server.key", "client.key", "allowed", "trusted"
LOCK, LOCK_SECONDS = "lock", 10.0  # held while one of them is changed, which takes no time
MOST_BYTES = 2**18
_KEY = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[\w.@-]{1,64}", re.ASCII)


class KeyPair(NamedTuple):
    public: str
    secret: str

    @property
    def bytes(self) -> tuple[bytes, bytes]:
        """(public, secret) as ZeroMQ takes them."""
        return bytes.fromhex(self.public), bytes.fromhex(self.secret)

    def __repr__(self) -> str:  # no log and no traceback shows the secret
        return f"KeyPair({self.public})"


def require_curve() -> None:
    """Raises UserError."""
    if not zmq.has("curve"):
        raise UserError(
            "this ZeroMQ cannot encrypt (it was built without CURVE), so nothing goes through the network",
            fix="Install pyzmq from a wheel of PyPI, or reach the machine through ssh with --host",
        )


def require_key(text: str) -> str:
    """A public key as it is typed. Raises UserError."""
    key = text.strip().lower()
    if not _KEY.fullmatch(key):
        raise UserError(
            f"{text[:80]!r} is not a key", fix="A key has 64 hexadecimal digits: see `wanlora daemon keys show` there"
        )
    return key


# --- pairs ----------------------------------------------------------------------------------------------------


def make_keys(paths: DaemonPaths) -> list[Path]:
    """Make the pairs that are missing, of the daemon and of this user as a client. The files that were made. Raises
    UserError."""
    require_curve()
    made = []
    with _alone(paths.keys):
        for name in (SERVER, CLIENT):
            path = paths.keys / name
            if not path.exists():
                public, secret = (z85.decode(key).hex() for key in zmq.curve_keypair())
                _write(path, f"public {public}\nsecret {secret}\n")
                made.append(path)
            read_pair(path)
    return made


def read_pair(path: Path) -> KeyPair:
    """Raises UserError when it is missing, damaged, or not private."""
    lines = dict(_pairs(_read(path, "Make it with: wanlora daemon keys make")))
    pair = KeyPair(lines.get("public", ""), lines.get("secret", ""))
    if not all(map(_KEY.fullmatch, pair)) or zmq.curve_public(z85.encode(pair.bytes[1])) != z85.encode(pair.bytes[0]):
        raise UserError(
            "holds no pair of keys", where=str(path), fix="Remove it and make another: wanlora daemon keys make"
        )
    return pair


# --- lists ----------------------------------------------------------------------------------------------------


def allowed_clients(paths: DaemonPaths) -> dict[str, str]:
    """Public key -> name of each client that may connect. Raises UserError."""
    return _list(paths.keys / ALLOWED)


def allow_client(paths: DaemonPaths, key: str, name: str = "") -> str:
    """Its name. Raises UserError."""
    key = require_key(key)
    with _alone(paths.keys):
        now = allowed_clients(paths)
        name = name or now.get(key) or f"client{len(now) + 1}"
        if not _NAME.fullmatch(name):
            raise UserError(f"{name[:80]!r} is not a name", fix="Use letters, digits, dots, hyphens and @")
        if any(name == there and key != other for other, there in now.items()):
            raise UserError(
                f"another key is called {name} already", fix=f"Take that away: wanlora daemon keys revoke {name}"
            )
        _write_list(paths.keys / ALLOWED, now | {key: name})
    return name


def revoke_client(paths: DaemonPaths, key_or_name: str) -> str:
    """Take a client from the list: it is cut off within a second. Its name. Raises UserError."""
    with _alone(paths.keys):
        now = allowed_clients(paths)
        gone = [key for key, name in now.items() if key_or_name in (key, name)]
        if not gone:
            raise UserError(f"no allowed client is called {key_or_name}", fix="See them with: wanlora daemon keys show")
        _write_list(paths.keys / ALLOWED, {key: there for key, there in now.items() if key not in gone})
    return now[gone[0]]


def trusted_daemons(paths: DaemonPaths) -> dict[str, str]:
    """host:port -> the public key that the daemon there must have. Raises UserError."""
    path = paths.keys / TRUSTED
    text = _read(path, "", missing="")
    found = {address: key for key, address in _pairs(text)}
    if len(found) != len([line for line in text.splitlines() if line.strip()]) or not all(
        map(_KEY.fullmatch, found.values())
    ):
        raise UserError(
            "holds a line that is not a key and its address, or two for one address",
            where=str(path),
            fix="Correct it; a line is KEY HOST:PORT",
        )
    return found


def trust_daemon(paths: DaemonPaths, address: str, key: str) -> None:
    """Pin the key of a daemon. Raises UserError."""
    new = {join_address(*split_address(address)): require_key(key)}
    with _alone(paths.keys):
        now = trusted_daemons(paths) | new
        _write(paths.keys / TRUSTED, "".join(f"{key} {address}\n" for address, key in now.items()))


def split_address(text: str) -> tuple[str, int]:
    """(host, port) of `host:port`, `[::1]:port` or `tcp://host:port`. Raises UserError."""
    found = re.fullmatch(r"(?:tcp://)?(\[[0-9a-fA-F:.%\w]+\]|[\w.-]+):(\d{1,5})/?", text.strip())
    if found is None or not 0 < int(found[2]) < 65535:  # the feed takes the port behind it
        raise UserError(f"{text[:80]!r} is not an address", fix="Write it as tcp://host:port, with a port below 65535")
    return found[1].strip("[]"), int(found[2])


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# --- files ----------------------------------------------------------------------------------------------------


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else changes what lies in it meanwhile, so that of two changes at once neither is lost; where a file
    system knows no locks, nobody is kept off. Raises UserError."""
    if not folder.exists():
        make_private(folder)
    path = folder / LOCK
    try:
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as e:
        raise UserError(f"cannot be locked: {e.strerror}", where=str(path)) from None
    until = time.monotonic() + LOCK_SECONDS
    try:
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise UserError(
                        f"another command has been changing the keys for {LOCK_SECONDS:.0f} s",
                        where=str(path),
                        fix="Is one of `wanlora daemon keys` stopped (Ctrl+Z)? Let it go on with `fg`, or end it",
                    ) from None
                time.sleep(0.02)
            except OSError:  # such as ENOLCK of a network disk
                break
        yield
    finally:
        os.close(held)


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(words[0], words[1]) for line in text.splitlines() if len(words := line.split()) == 2]


def _list(path: Path) -> dict[str, str]:
    text = _read(path, "", missing="")
    found = dict(_pairs(text))
    if len(found) != len([line for line in text.splitlines() if line.strip()]) or not all(map(_KEY.fullmatch, found)):
        raise UserError(
            "holds a line that is not a key and its name", where=str(path), fix="Correct it; a line is KEY NAME"
        )
    return found


def _write_list(path: Path, entries: dict[str, str]) -> None:
    _write(path, "".join(f"{key} {name}\n" for key, name in entries.items()))


def _write(path: Path, text: str) -> None:
    make_private(path.parent)
    try:
        with replacing(path, sync=True) as aside:
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as f:
                f.write(text)
    except OSError as e:
        raise UserError(f"cannot be written: {e.strerror}", where=str(path)) from None


def _read(path: Path, fix: str, *, missing: str | None = None) -> str:
    """The text of a file that nobody else can read or could have written. Raises UserError."""
    try:
        folder = path.parent.lstat()
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise UserError("there is no such key", where=str(path), fix=fix) from None
    except OSError as e:
        raise UserError(f"cannot be read: {e.strerror}", where=str(path), fix=fix) from None
    with os.fdopen(descriptor, "rb") as f:
        facts = os.fstat(f.fileno())
        for what, of, command in (
            (path.parent, folder, f"chmod 700 {path.parent}"),
            (path, facts, f"chmod 600 {path}"),
        ):
            if of.st_uid != os.getuid():
                raise UserError("belongs to another user, so it is not used", where=str(what), fix="Make your own keys")
            if of.st_mode & 0o077:
                raise UserError(
                    "other users may enter or read it, so it is not used",
                    where=str(what),
                    fix=f"If nobody has: {command}. If somebody may have, remove it and make new keys",
                )
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > MOST_BYTES:
            raise UserError("is no file of keys", where=str(path), fix=fix)
        return f.read(MOST_BYTES).decode("utf-8", "replace")

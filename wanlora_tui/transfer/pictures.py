"""The pictures and films that the screens draw: those of this machine as they lie, those of another one brought into a
small cache when somebody looks at them.

How they are drawn is wanlora_tui.film's.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import platformdirs

from presets.errors import UserError
from presets.text import human
from wanlora_tui.transfer.channel import FarFiles
from wanlora_tui.transfer.messages import Cut, Facts

CAP = 512 * 2**20  # bytes of the cache
MOST = 32 * 2**20  # bytes of one picture
MOST_FILM = 128 * 2**20
AGAIN_SECONDS = 5.0  # until one that could not be had is asked for anew
TELL_SECONDS = 0.5  # between two words of how much of a film has come
# since anybody looked: then it is fetched no further. Who is shown how much has come looks again each time.
LEFT_SECONDS = 10.0
FILMS = (".mp4", ".mov", ".m4v", ".mkv", ".webm")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", *FILMS)
Key = tuple[Path, object]


class _SetAside(Exception):
    """A picture comes first, or nobody looks any more; what has come is kept."""


class Pictures(Protocol):
    def find(self, path: Path, version: object = None) -> Path | str:
        """The file here, or why there is none yet. `version`: anything that differs once `path` may have been written
        anew."""
        ...


class HerePictures:
    """They lie where the run has put them."""

    def find(self, path: Path, version: object = None) -> Path | str:
        return path


class FarPictures:
    """Pictures of another machine. `connect` opens a channel; `changed` is called, in another thread, when one has
    come, or more of a film. The newest that was asked for comes first, pictures before films."""

    def __init__(
        self,
        host: str,
        connect: Callable[[], FarFiles],
        changed: Callable[[], None],
        folder: Path | None = None,
        cap: int = CAP,
    ) -> None:
        self._host, self._connect, self._changed, self._cap = host, connect, changed, cap
        self._folder = folder or Path(platformdirs.user_cache_dir("wanlora")) / "pictures"
        self._known: dict[Key, Path | str] = {}
        self._failed: dict[Key, float] = {}  # when
        self._newest: dict[Path, Path] = {}  # what came last, of whatever version
        self._wanted: list[Key] = []
        self._asked: dict[Key, float] = {}  # when somebody looked last
        self._come: dict[Key, str] = {}  # how much of it
        self._lock = threading.Condition()
        self._thread: threading.Thread | None = None
        self._files: FarFiles | None = None
        self._closed = False

    def find(self, path: Path, version: object = None) -> Path | str:
        """While a newer one is on its way, the one before."""
        key = (path, version)
        with self._lock:
            known = self._known.get(key)
            if isinstance(known, Path) and known.exists():
                return known
            self._asked[key] = time.monotonic()
            if known is None or time.monotonic() - self._failed.get(key, 0.0) > AGAIN_SECONDS:
                self._want(key)
            newest = self._newest.get(path)
            if newest is not None and newest.exists():
                return newest
            if isinstance(known, str):
                return known
            return f"It is being fetched from {self._host}{self._come.get(key, '')}."

    def _want(self, key: Key) -> None:
        if key not in self._wanted and not self._closed:
            self._wanted.append(key)
            self._lock.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name="pictures from afar")
            self._thread.start()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify()
            if self._files is not None:
                self._files.end()

    # --- in a thread of its own --------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._lock:
                while not self._wanted and not self._closed:
                    self._lock.wait()
                if self._closed:
                    break
                key = self._next
            try:
                got = self._fetch(key)
            except _SetAside:
                with self._lock:
                    if not self._is_looked_at(key):
                        self._wanted.remove(key)
                        self._come.pop(key, None)
                continue
            with self._lock:
                self._wanted.remove(key)
                self._come.pop(key, None)
                self._known[key] = got
                if isinstance(got, Path):
                    self._newest[key[0]] = got
                else:
                    self._failed[key] = time.monotonic()
            self._changed()
        if self._files is not None:
            self._files.close()

    @property
    def _next(self) -> Key:
        return next((key for key in reversed(self._wanted) if not _is_film(key)), self._wanted[-1])

    def _is_looked_at(self, key: Key) -> bool:
        return time.monotonic() - self._asked.get(key, 0.0) < LEFT_SECONDS

    def _fetch(self, key: Key) -> Path | str:
        path, most = key[0], MOST_FILM if _is_film(key) else MOST
        with self._lock:
            if not self._is_looked_at(key):
                raise _SetAside
        try:
            if self._files is None:
                self._files = self._connect()
            (facts,) = self._files.facts([str(path)])
            if facts.kind == "none":
                return f"It is not there on {self._host}."
            if facts.kind != "file" or facts.size > most:
                what = "It is too large" if _is_film(key) else "It is no picture"
                return f"{what}: {human(facts.size)}." if facts.kind == "file" else "It is no picture."
            return self._kept(self._files, key, facts)
        except Cut as e:
            if self._files is not None:
                self._files.close()
            self._files = None
            return f"It cannot be fetched from {self._host} at present: {e}. It is tried again."
        except (UserError, OSError) as e:
            return f"It cannot be fetched from {self._host}: {e}."

    def _kept(self, files: FarFiles, key: Key, facts: Facts) -> Path:
        """The copy in the cache, which comes now unless it is there; what came before a cut stays."""
        path = key[0]
        named = f"{self._host}\0{path}\0{facts.size}\0{facts.mtime_ns}".encode()
        name = hashlib.sha256(named).hexdigest()[:32]
        kept = self._folder / f"{name}{path.suffix.lower() if path.suffix.lower() in SUFFIXES else ''}"
        if kept.exists():
            os.utime(kept)
            return kept
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self._folder / f".{name}.{os.getpid()}.part"
        with part.open("ab") as f:
            come, told = f.tell(), time.monotonic()
            for data in files.read(str(path), come, facts.size - come):
                f.write(data)
                come += len(data)
                if time.monotonic() - told > TELL_SECONDS:
                    told = time.monotonic()
                    self._come[key] = f": {human(come)} of {human(facts.size)}"
                    self._changed()
                if come < facts.size and _is_film(key):
                    self._give_way(key)
        part.replace(kept)
        self._make_room()
        return kept

    def _give_way(self, key: Key) -> None:
        with self._lock:
            if self._closed or self._next != key or not self._is_looked_at(key):
                raise _SetAside

    def _make_room(self) -> None:
        """What was used longest ago goes first. Other programs may do the same."""
        entries = []
        for file in self._folder.iterdir():
            with suppress(FileNotFoundError):
                facts = file.stat()
                entries.append((facts.st_mtime_ns, facts.st_size, file))
        total = sum(size for _, size, _ in entries)
        for _, size, file in sorted(entries)[:-1]:
            if total <= self._cap:
                break
            file.unlink(missing_ok=True)
            total -= size


def _is_film(key: Key) -> bool:
    return key[0].suffix.lower() in FILMS

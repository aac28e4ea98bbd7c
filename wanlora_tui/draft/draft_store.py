"""Half-filled wizards, kept on disk at every change, so that nothing typed is lost and it can be offered again.

Each wizard has a draft of its own, locked while it lives: `draft.json` for the first, `draft-2.json` and so on beside
it. The lock is one of the kernel on the file itself, so a killed wizard holds none.
"""

import fcntl
import itertools
import os
import re
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import msgspec
from msgspec import Struct, field

from presets.errors import UserError
from presets.job.fields import field_of, parse_path
from presets.job.schema import Kind, LayersPanel, MergePanel, PromptPanel, suggested_name
from presets.text import sentences

PATIENCE = 20  # tries for a lock: whoever only asks whether a draft is in use holds it for an instant
MOST = 1 << 20  # bytes of a draft's file, from which it is written anew


class DraftError(UserError):
    """The kept draft cannot be read or written."""


class Draft(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the user has chosen so far. Everything not in here follows the recommendation, and moves with it."""

    version: int = 1
    saved: float = 0.0  # wall clock, seconds since 1970
    step: str = "kind"  # a name of wanlora_tui.draft.steps.STEPS
    kind: Kind | None = None
    copy_of: str = ""  # the job that it was made of; "": of none
    folders: list[str] = field(default_factory=list)  # absolute; datasets[i] of the job
    values: dict[str, Any] = field(default_factory=dict)  # {"datasets[0].num_frames": 33}
    typed: dict[str, str] = field(default_factory=dict)  # {"training.lr": "fast"}: text that is no valid value
    prompts: list[PromptPanel] = field(default_factory=list)
    merges: list[MergePanel] = field(default_factory=list)  # one whose path is empty is none
    layers: list[LayersPanel] = field(default_factory=list)
    job_path: str = ""  # where the job file goes; "" follows the job's name
    launched: str = ""  # the job file that was handed to the daemon; "" again once it was refused
    launched_at: float = 0.0  # when, seconds since 1970

    @property
    def is_empty(self) -> bool:
        chosen = (self.folders, self.values, self.typed, self.prompts, self.merges)
        return self.kind is None and not any(chosen)

    @property
    def name(self) -> str:
        """The job's name as far as it is known; "" before a folder is."""
        named = self.values.get("job.name", "")
        return (
            str(named)
            if named or not (self.kind and self.folders)
            else suggested_name(self.kind, Path(self.folders[0]).name)
        )


class DraftStore:
    """One draft in one file: a line for each state that was kept, of which the last whole one counts.

    Of a draft that is held, a state is added behind the ones before it, by a single call of the system: it is done at
    every key, while whoever types waits. A new file takes their place once they have grown long: a temporary one,
    renamed over the old. Either way a killed process leaves the last state or the one before it, never half of one. The
    disk is not waited for.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_draft_path()
        self._held: IO[bytes] | None = None  # the file under `path`, locked
        self._made: os.stat_result | None = None  # of the same, if it was made here and each line in it is whole

    def load(self) -> Draft | None:
        """The kept draft; None when there is none. Raises DraftError for a file that is not a draft of this version."""
        try:
            draft = msgspec.json.decode(_last_line(self.path.read_bytes()), type=Draft)
            for path, value in draft.values.items():
                msgspec.convert(value, field_of(path).annotation)
            for path in (*draft.values, *draft.typed):
                field_of(path)
                panel, index = parse_path(path)[:2]
                if panel == "datasets" and not (isinstance(index, int) and index < len(draft.folders)):
                    raise DraftError(f"{path} belongs to no folder")
        except FileNotFoundError:
            return None
        except OSError as e:
            raise DraftError(f"the kept draft cannot be read: {e.strerror}", where=str(self.path)) from None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, UserError) as e:
            raise DraftError(f"the kept draft does not fit this version ({e})", where=str(self.path)) from None
        return draft

    def save(self, draft: Draft) -> None:
        """Write the draft, stamped with the time; one that is held stays held. Raises DraftError."""
        line = _stamped(draft)
        try:
            if self._add(line):
                return
            temporary, file = _write(line, self.path)
            temporary.replace(self.path)
        except OSError as e:
            raise DraftError(f"the draft cannot be kept: {e.strerror}", where=str(self.path)) from None
        if self._held is None:
            file.close()
        else:
            self._held.close()
            self._take(file)

    def _add(self, line: bytes) -> bool:
        """Write a state behind the others; False when it takes a new file. Raises OSError."""
        if self._held is None or self._made is None:
            return False
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return False
        if not os.path.samestat(there, self._made) or there.st_size + len(line) > MOST:
            return False
        made, self._made = self._made, None
        if os.write(self._held.fileno(), line) == len(line):  # else the disk is full, and the line has no end
            self._made = made
        return self._made is not None

    def _take(self, file: IO[bytes]) -> None:
        """Hold a file that was written here."""
        self._held, self._made = file, os.fstat(file.fileno())

    def delete(self) -> None:
        """Delete the draft and let go of it. Raises DraftError."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as e:
            raise DraftError(f"the draft cannot be deleted: {e.strerror}", where=str(self.path)) from None
        finally:
            self.release()

    def set_aside(self) -> Path:
        """Rename a file that `load` refused, so that no save destroys it and no wizard stumbles over it again. Raises
        OSError."""
        names = itertools.chain([".unread"], (f".unread-{n}" for n in itertools.count(2)))
        aside = next(path for name in names if not (path := self.path.with_name(self.path.name + name)).exists())
        self.path.replace(aside)
        return aside

    # Which wizard it belongs to

    def hold(self) -> bool:
        """Make a draft that lies there this wizard's own; False when another's has it, or it is missing. Raises
        DraftError."""
        for _ in range(PATIENCE):
            self._held, self._made = self._lock(fcntl.LOCK_EX), None
            if self._held is not None:
                return True
            time.sleep(0.01)
        return False

    def release(self) -> None:
        """Leave the draft to the next wizard."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def is_left_over(self) -> bool:
        """Whether it lies there and belongs to no living wizard. Raises DraftError."""
        file = self._lock(fcntl.LOCK_SH)
        if file is not None:
            file.close()
        return file is not None

    def _lock(self, mode: int) -> IO[bytes] | None:
        """The file, locked; None when another has locked it, or there is none."""
        while True:
            try:
                file = self.path.open("r+b")
            except FileNotFoundError:
                return None
            except OSError as e:
                raise DraftError(f"the kept draft cannot be opened: {e.strerror}", where=str(self.path)) from None
            try:
                fcntl.flock(file, mode | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                    return file
                file.close()  # its wizard wrote it anew meanwhile
            except (BlockingIOError, FileNotFoundError):
                file.close()
                return None
            except OSError as e:
                file.close()
                raise DraftError(f"the kept draft cannot be locked: {e.strerror}", where=str(self.path)) from None


class Drafts:
    """The drafts of all wizards: `first`, and beside it those of wizards that ran at the same time."""

    def __init__(self, first: Path | None = None) -> None:
        self.first = first or default_draft_path()

    def begin(self, draft: Draft) -> DraftStore:
        """Write a new wizard's draft under the first free name, held. Raises DraftError."""
        try:
            temporary, file = _write(_stamped(draft), self.first)
            try:
                for number in itertools.count(1):
                    path = (
                        self.first
                        if number == 1
                        else self.first.with_name(f"{self.first.stem}-{number}{self.first.suffix}")
                    )
                    try:
                        os.link(temporary, path)  # unlike a rename it fails where something lies
                        break
                    except FileExistsError:
                        continue
            finally:
                temporary.unlink()
        except OSError as e:
            raise DraftError(f"the draft cannot be kept: {e.strerror}", where=str(self.first)) from None
        store = DraftStore(path)
        store._take(file)
        return store

    def left_over(self) -> tuple[list[tuple[DraftStore, Draft]], list[str]]:
        """The drafts of wizards that have ended, newest first, and what is wrong with files that are no drafts: these
        are set aside."""
        found, problems = [], []
        name = re.compile(rf"{re.escape(self.first.stem)}(-\d+)?{re.escape(self.first.suffix)}")
        for path in sorted(self.first.parent.glob("*")):
            if not name.fullmatch(path.name):
                continue
            store = DraftStore(path)
            try:
                if not store.is_left_over():
                    continue
            except DraftError as e:  # of the file or its disk, not of what is in it
                problems.append(str(e))
                continue
            try:
                if (draft := store.load()) is not None and not draft.is_empty:
                    found.append((store, draft))
            except DraftError as e:
                try:
                    problems.append(sentences(str(e), f"It lies at {store.set_aside()} now"))
                except OSError:
                    problems.append(sentences(str(e), "It stays there"))
        return sorted(found, key=lambda f: f[1].saved, reverse=True), problems


def _stamped(draft: Draft) -> bytes:
    """The draft as a line of its file, with the time in it."""
    draft.saved = time.time()
    return msgspec.json.encode(draft) + b"\n"


def _last_line(content: bytes) -> bytes:
    """The last line that has an end; of a file without any, all of it."""
    lines, _, rest = content.rpartition(b"\n")
    return lines.rpartition(b"\n")[2] if lines else rest


def _write(line: bytes, path: Path) -> tuple[Path, IO[bytes]]:
    """A temporary file beside `path` with one line in it, locked. Raises OSError."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    file = os.fdopen(handle, "wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(line)
        file.flush()
    except BaseException:
        file.close()
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name), file


def default_draft_path() -> Path:
    import platformdirs

    return Path(platformdirs.user_state_dir("wanlora")) / "draft.json"


def without_index(entries: dict[str, Any], panel: str, index: int) -> dict[str, Any]:
    """Entries keyed by field path after `panel[index]` was removed: its own go, later ones move down by one."""
    out: dict[str, Any] = {}
    for path, value in entries.items():
        match = re.fullmatch(rf"{re.escape(panel)}\[(\d+)\](.*)", path)
        if not match or int(match[1]) < index:
            out[path] = value
        elif int(match[1]) > index:
            out[f"{panel}[{int(match[1]) - 1}]{match[2]}"] = value
    return out


def age_text(seconds: float) -> str:
    """`12 minutes ago`, for a person."""
    for size, word in ((86400, "day"), (3600, "hour"), (60, "minute")):
        count = int(max(0.0, seconds) // size)
        if count:
            return f"{count} {word}{'s' if count > 1 else ''} ago"
    return "moments ago"

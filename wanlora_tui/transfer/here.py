"""Files of this machine, as the other end of a channel is asked for them. Only regular files are listed and read: a
link could lead anywhere.

The requests are wanlora_tui.transfer.messages's; files of another machine wanlora_tui.transfer.channel's.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from presets.errors import UserError
from presets.file_names import escaped, expanded, is_utf8
from presets.files import open_regular, read_regular
from presets.runs.checkpoints import MAX_MANIFEST_BYTES
from presets.runs.events import EVENTS_FILE
from presets.runs.run_folder import PAGE_FILE
from wanlora_tui.transfer.messages import PART, Facts, FileEntry, Gone, Listing, What

CHUNK = 2**20  # bytes read at once
NOT_RESULTS = ("control",)  # commands on their way to the trainer
REPORT = (EVENTS_FILE, "job.toml", PAGE_FILE)
ALL_STEPS = -1


class HereFiles:
    """Answers about the files of this machine. Raises UserError for what cannot be read."""

    def list_run(self, folder: str, what: What, step: int | None = None) -> Listing:
        root = absolute(folder)
        if not root.is_dir():
            raise UserError("there is no run folder", where=str(root), fix="It was moved or deleted there")
        match what:
            case "loras":
                return _listing(root, [root / name for name in _loras(root, step)])
            case "previews":
                inside = "" if step in (None, ALL_STEPS) else f"step_{step:09d}"
                return _below(root, root / "samples" / inside)
            case "report":
                return _listing(root, [root / name for name in REPORT])
            case "run":
                return _below(root, root)

    def list_folder(self, path: str) -> Listing:
        root = absolute(path)
        return _below(root, root) if root.is_dir() else _listing(root, [root])

    def facts(self, paths: list[str]) -> list[Facts]:
        return [_facts(path) for path in paths]

    def digest(self, path: str, length: int) -> str:
        digest = hashlib.sha256()
        for data in self.read(path, 0, length):
            digest.update(data)
        return digest.hexdigest()

    def read(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        """Exactly `length` bytes."""
        try:
            with open_regular(absolute(path)) as f:
                shorter = UserError("it has become shorter", where=path, fix="It is being written: try again later")
                if length and os.fstat(f.fileno()).st_size < offset + length:
                    raise shorter
                f.seek(offset)
                while length:
                    data = f.read(min(CHUNK, length))
                    if not data:
                        raise shorter
                    length -= len(data)
                    yield data
        except FileNotFoundError:
            raise Gone("there is no such file", where=path) from None
        except OSError as e:
            raise UserError(f"cannot be read: {e.strerror or e}", where=path) from None

    def close(self) -> None:
        """As of a channel."""


def absolute(path: str) -> Path:
    return Path.home() / expanded(path)


def _facts(path: str) -> Facts:
    try:
        whole = absolute(path)
        found = whole.stat()
    except (OSError, RuntimeError, ValueError):  # an unknown ~user, a name with a zero byte
        return Facts("", "none")
    kind = "file" if stat.S_ISREG(found.st_mode) else "folder" if stat.S_ISDIR(found.st_mode) else "other"
    return Facts(str(whole), kind, found.st_size, found.st_mtime_ns)  # type: ignore[arg-type]


def _loras(root: Path, step: int | None) -> list[str]:
    """The final LoRA files, or the newest of a step where these are newer or the only ones."""
    pattern = re.compile(rf"{re.escape(root.name)}(?:_(\d{{9}}))?_(?:high_noise|low_noise)\.safetensors")
    found: dict[int | None, list[str]] = {}
    for name in sorted(path.name for path in root.iterdir()):
        if m := pattern.fullmatch(name):
            found.setdefault(int(m[1]) if m[1] else None, []).append(name)
    if step == ALL_STEPS:
        return [name for names in found.values() for name in names]
    if step is not None:
        return found.get(step, [])
    last = max((s for s in found if s is not None), default=None)
    final = found.get(None, [])
    if final and (last is None or _newest(root, final) >= _newest(root, found[last])):
        return final
    return found.get(last, [])


def _newest(root: Path, names: list[str]) -> float:
    return max((root / name).lstat().st_mtime for name in names)


def _below(root: Path, folder: Path) -> Listing:
    """Every file below `folder`, relative to `root`, folders in order."""
    paths, odd = [], []
    unread: list[OSError] = []
    for at, folders, names in os.walk(folder, onerror=unread.append):
        if Path(at) == root:
            folders[:] = [name for name in folders if name not in NOT_RESULTS]
        folders.sort()
        odd += [Path(at, name) for name in folders if Path(at, name).is_symlink()]
        paths += [Path(at, name) for name in sorted(names) if not name.endswith((PART, ".tmp"))]
    listed = _listing(root, paths)
    listed.passed_over += [f"{escaped(str(path.relative_to(root)))}: a link" for path in odd]
    listed.passed_over += [
        f"{escaped(os.path.relpath(e.filename, root))}: cannot be read: {e.strerror}"
        for e in unread
        if not isinstance(e, FileNotFoundError)
    ]
    return listed


def _listing(root: Path, paths: list[Path]) -> Listing:
    files, passed_over, manifests = [], [], {}
    for path in paths:
        name = str(path.relative_to(root))
        try:
            facts = path.lstat()
        except FileNotFoundError:  # removed meanwhile, or never written
            continue
        if not is_utf8(name):
            passed_over.append(f"{escaped(name)}: its name is not UTF-8")
        elif not stat.S_ISREG(facts.st_mode):
            passed_over.append(f"{name}: {'a link' if stat.S_ISLNK(facts.st_mode) else 'not a file'}")
        else:
            if path.parent not in manifests:
                manifests[path.parent] = _manifest(path.parent)
            known = manifests[path.parent].get(path.name, "")
            files.append(FileEntry(name, facts.st_size, facts.st_mtime_ns, known))
    return Listing(files, passed_over)


def _manifest(folder: Path) -> dict[str, str]:
    """File -> SHA-256, of a checkpoint."""
    try:
        listed = json.loads(read_regular(folder / "manifest.json", MAX_MANIFEST_BYTES))["files"]
        return {name: str(entry["sha256"]) for name, entry in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}

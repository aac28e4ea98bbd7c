"""What was changed in a draft, to take it back and to make it again, and that in words."""

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from wanlora_tui.draft.draft_store import Draft
from wanlora_tui.output.formatting import shorten, value_text

MOST = 500  # changes that can be taken back
NOT_CHANGED = ("version", "saved", "step", "copy_of", "launched", "launched_at")  # fields of a draft that no user sets
WORDS = 3  # changes of one step that are named


class History:
    """The states that a draft has been in. Changes of one field in a row count as one, until `close`."""

    def __init__(self, draft: Draft) -> None:
        self._now = _content(draft)
        self._draft = _draft(self._now)  # the same
        self._undo = deque[bytes](maxlen=MOST)
        self._redo: list[bytes] = []
        self._open: set[str] | None = None

    @property
    def can_undo(self) -> bool:
        return bool(self._undo)

    @property
    def can_redo(self) -> bool:
        return bool(self._redo)

    def note(self, draft: Draft) -> None:
        """Take in what the draft has become."""
        now = _content(draft)
        if now == self._now:
            return
        become = _draft(now)
        paths = set(changed(self._draft, become))
        if not (len(paths) == 1 and paths == self._open and self._undo):
            self._undo.append(self._now)
        self._now, self._draft, self._open = now, become, paths
        self._redo.clear()

    def close(self) -> None:
        """The next change is one of its own."""
        self._open = None

    def undo(self, draft: Draft) -> Draft | None:
        """The draft as it was before the last change; None when there was none."""
        if not self._undo:
            return None
        self._redo.append(self._now)
        return self._go(self._undo.pop(), draft)

    def redo(self, draft: Draft) -> Draft | None:
        """The draft with the change that was taken back last; None when there is none."""
        if not self._redo:
            return None
        self._undo.append(self._now)
        return self._go(self._redo.pop(), draft)

    def _go(self, content: bytes, draft: Draft) -> Draft:
        self._now, self._draft, self._open = content, _draft(content), None
        kept = {name: getattr(draft, name) for name in NOT_CHANGED}
        return msgspec.structs.replace(_draft(content), **kept)


def _content(draft: Draft) -> bytes:
    unset = msgspec.structs.replace(draft, saved=0.0, step="", copy_of="", launched="", launched_at=0.0)
    return msgspec.msgpack.encode(unset)


def _draft(content: bytes) -> Draft:
    return msgspec.msgpack.decode(content, type=Draft)


def changed(before: Draft, after: Draft) -> Iterator[str]:
    """What differs: field paths, and `datasets`, `sample.prompts`, `model.merge`, `target.layers` for tables that came
    or went, `job file`."""
    if before.kind != after.kind:
        yield "job.kind"
    folders = [{f"datasets[{i}].path": folder for i, folder in enumerate(draft.folders)} for draft in (before, after)]
    if len(before.folders) != len(after.folders):
        folders = [{}, {}]
        yield "datasets"
    old, new = before.values | folders[0], after.values | folders[1]
    for path in sorted({*old, *new, *before.typed, *after.typed}):
        if (old.get(path), before.typed.get(path)) != (new.get(path), after.typed.get(path)):
            yield path
    tables: list[tuple[str, Any, Any]] = [
        ("sample.prompts", before.prompts, after.prompts),
        ("model.merge", before.merges, after.merges),
        ("target.layers", before.layers, after.layers),
    ]
    for panel, some, others in tables:
        if len(some) != len(others):
            yield panel
            continue
        for i, (one, other) in enumerate(zip(some, others, strict=True)):
            for name in one.__struct_fields__:
                if getattr(one, name) != getattr(other, name):
                    yield f"{panel}[{i}].{name}"
    if before.job_path != after.job_path:
        yield "job file"


def in_words(before: Draft, after: Draft, value: Callable[[Draft, str], Any]) -> str:
    """`target.rank 32 -> 16`; `value` gives a field's value, its recommendation included."""
    words = []
    for path in changed(before, after):
        if path == "datasets":
            gone, come = (
                [Path(f).name for f in one.folders if f not in other.folders]
                for one, other in ((before, after), (after, before))
            )
            words += [f"folder {name} is gone" for name in gone] + [f"folder {name} is there" for name in come]
            continue
        if path in ("sample.prompts", "model.merge", "target.layers"):
            old, new = (len(_tables(draft, path)) for draft in (before, after))
            words.append(f"{path} {old} -> {new}")
            continue
        if path == "job file":
            shown = [before.job_path, after.job_path]
        else:
            shown = [d.typed[path] if path in d.typed else value_text(value(d, path)) for d in (before, after)]
        words.append(f"{path} {' -> '.join(shorten(text, 40) or 'empty' for text in shown)}")
    more = f" and {len(words) - WORDS} more" if len(words) > WORDS else ""
    return ", ".join(words[:WORDS]) + more


def _tables(draft: Draft, panel: str) -> list[Any]:
    tables: dict[str, list[Any]] = {
        "sample.prompts": draft.prompts,
        "model.merge": draft.merges,
        "target.layers": draft.layers,
    }
    return tables[panel]

"""The half-filled wizard, kept on disk at every change, so that nothing typed is lost and it can be offered again."""

import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from presets.errors import UserError
from presets.fields import field_of, parse_path
from presets.job import Kind, PromptPanel


class DraftError(UserError):
    """The kept draft cannot be read or written."""


class Draft(Struct, kw_only=True, forbid_unknown_fields=True):
    """What the user has chosen so far. Everything not in here follows the recommendation, and moves with it."""

    version: int = 1
    saved: float = 0.0  # wall clock, seconds since 1970
    step: str = "kind"  # a name of wanlora_tui.screens.wizard.steps.STEPS
    kind: Kind | None = None
    folders: list[str] = field(default_factory=list)  # absolute; datasets[i] of the job
    values: dict[str, Any] = field(default_factory=dict)  # {"datasets[0].num_frames": 33}
    typed: dict[str, str] = field(default_factory=dict)  # {"training.lr": "fast"}: text that is no valid value
    prompts: list[PromptPanel] = field(default_factory=list)
    job_path: str = ""  # where the job file goes; "" follows the job's name

    @property
    def is_empty(self) -> bool:
        return self.kind is None and not self.folders and not self.values and not self.typed and not self.prompts


class DraftStore:
    """One draft in one file.

    Each write goes to a temporary file that is renamed over the old one: a killed process leaves the last state or the
    one before it, never half of one. It is written at every key, so it is not fsynced.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_draft_path()

    def load(self) -> Draft | None:
        """The kept draft; None when there is none. Raises DraftError for a file that is not a draft of this version."""
        try:
            draft = msgspec.json.decode(self.path.read_bytes(), type=Draft)
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
        except (msgspec.MsgspecError, UnicodeDecodeError, UserError) as e:
            raise DraftError(f"the kept draft does not fit this version ({e})", where=str(self.path)) from None
        return draft

    def save(self, draft: Draft) -> None:
        """Write the draft, stamped with the time. Raises DraftError."""
        draft.saved = time.time()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
            with os.fdopen(handle, "wb") as f:
                f.write(msgspec.json.encode(draft))
            Path(temporary).replace(self.path)
        except OSError as e:
            raise DraftError(f"the draft cannot be kept: {e.strerror}", where=str(self.path)) from None

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)

    def set_aside(self) -> Path:
        """Rename a file that `load` refused, so that the next save does not destroy it."""
        aside = self.path.with_name(self.path.name + ".unread")
        self.path.replace(aside)
        return aside


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

"""What the user has seen of each run, so that coming back can say what happened meanwhile."""

from pathlib import Path

import msgspec
from msgspec import Struct, field

from presets.atomic_file import write_file
from presets.runs.events import Event
from presets.runs.run_view import RunView
from wanlora_tui.output.formatting import count

REMEMBERED = 200  # runs


class LastSeen(Struct, kw_only=True):
    """Small things that outlive a session: the last event seen per run, and the theme."""

    seen: dict[str, int] = field(default_factory=dict)  # run id -> seq
    theme: str = ""


class LastSeenFile:
    """It on disk, in `tui.json`. A damaged or missing file counts as empty: it holds nothing that could be missed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tui.json"
        try:
            self.kept = msgspec.json.decode(self.path.read_bytes(), type=LastSeen)
        except (FileNotFoundError, msgspec.MsgspecError):
            self.kept = LastSeen()

    def seq_of(self, run: str) -> int:
        """The newest event of a run that was on the screen; 0 when none was."""
        return self.kept.seen.get(run, 0)

    def saw(self, run: str, seq: int) -> None:
        """Note the newest event on the screen; `save` writes it."""
        if run and seq > self.seq_of(run):
            self.kept.seen.pop(run, None)
            self.kept.seen[run] = seq
            for old in list(self.kept.seen)[:-REMEMBERED]:
                del self.kept.seen[old]

    def save(self) -> None:
        """Write atomically. Raises OSError."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_file(self.path, msgspec.json.encode(self.kept), private=True)


def since_you_left(events: list[Event], view: RunView) -> str:
    """`Since you left: 412 steps, 1 preview, 0 warnings`, of the events missed; "" when there were none."""
    if not events:
        return ""
    steps = sum(e.kind == "step" for e in events)
    previews = sum(e.kind == "sample" for e in events)
    warnings = sum(
        (e.kind == "finding" and e.data["severity"] != "advice") or (e.kind == "log" and e.data["level"] == "warning")
        for e in events
    )
    text = f"Since you left: {count(steps, 'step')}, {count(previews, 'preview')}, {count(warnings, 'warning')}"
    return text if view.state in ("starting", "running") else f"{text}; {view.state}"

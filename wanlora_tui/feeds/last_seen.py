"""What the user has seen of each run, so that coming back can say what happened meanwhile."""

from pathlib import Path

import msgspec
from msgspec import Struct, field

from presets.atomic_file import write_file
from presets.runs.events import TERMINAL_KINDS, Event
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
        except (FileNotFoundError, msgspec.MsgspecError, RecursionError):
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
        """Write atomically, with what was seen meanwhile in other terminals. Raises OSError."""
        for run, seq in LastSeenFile(self.path.parent).kept.seen.items():
            self.saw(run, seq)
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_file(self.path, msgspec.json.encode(self.kept), private=True)


def since_you_left(events: list[Event], view: RunView) -> str:
    """`Since you left: 412 steps, 1 preview, 2 changes`, of the events missed; "" when nothing worth telling was. What
    was done twice, because an attempt began further back, counts once."""

    def distinct(kind: str, *keys: str) -> int:
        return len({tuple(str(e.data.get(key)) for key in keys) for e in events if e.kind == kind})

    warnings = sum(
        (e.kind == "finding" and e.data["severity"] != "advice") or (e.kind == "log" and e.data["level"] == "warning")
        for e in events
    )
    counts = {
        "step": distinct("step", "step"),
        "preview": distinct("sample", "path"),
        "change": distinct("changed", "field", "step", "new"),
        "warning": warnings,
        "failure": sum(e.kind == "failed" for e in events),
        "restart": sum(e.kind == "started" and e.attempt > 1 for e in events),
    }
    said = [count(number, noun) for noun, number in counts.items() if number]
    ended = view.state if any(e.kind in TERMINAL_KINDS for e in events) and view.state in TERMINAL_KINDS else ""
    text = "; ".join(part for part in (", ".join(said), ended) if part)
    return f"Since you left: {text}" if text else ""

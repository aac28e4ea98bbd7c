"""What led to the present weights of a run: its events, without the branches that a resume or a rollback left behind.
For the trainer; what people see, these branches too, is in presets.runs.run_view.

A resume from step S trains what came after S anew, so steps, previews, checkpoints and findings of later steps no
longer count. A value that was set while the run trained counts on: it is set again at the same step, so that the run
goes the way it went. A rollback forgets what was set after its step, too.
"""

from typing import Any

import msgspec
from msgspec import Struct

from presets.job.diff import LIVE_FIELDS
from presets.runs.event_data import ValidationData
from presets.runs.events import COMMAND_ID, EDITED, Event
from presets.runs.ranking import Measure

# kinds that say something about the training
TELLING = frozenset({"step", "sample", "checkpoint", "finding", "changed", "replanned"})


class Setting(Struct, frozen=True, kw_only=True):
    """A value of the job that changed after `step` steps: its `changed` event."""

    step: int
    field: str
    old: Any
    new: Any


class History:
    """Fed with all events of a run in order, knows those of the present branch."""

    def __init__(self) -> None:
        self.events: list[Event] = []  # of the kinds in TELLING
        self.checkpoints: dict[int, str] = {}  # step -> path
        self.samples: dict[str, dict[str, Any]] = {}  # path of a preview -> its event's data
        self.measured: dict[int, Measure] = {}  # step -> the held-out loss
        self.unmeasured: dict[int, str] = {}  # step -> why that could not be measured, where it was said
        self.found: set[str] = set()  # the messages of findings that are of no step, on whatever branch
        self.skipped: set[int] = set()  # steps that were not finite, numbered as in `step` events
        self.done = False  # the last attempt came to the end of the run
        self.command_ids: set[str] = set()  # ids of the commands that were applied or refused, on whatever branch
        self.rolling_back: int | None = None  # a rollback to this step was begun and its attempt has not started
        self.abandoned = ""  # the folder that this rollback began to move things to, relative to the run folder
        self._set: dict[tuple[int, str], Setting] = {}
        self._edits: dict[str, int] = {}  # field -> seq of its last edit in a job file, on whatever branch
        self._keep = True

    def add(self, event: Event) -> None:
        """Take in the next event."""
        data = event.data
        if event.kind == "finding" and "step" not in data:
            self.found.add(data["message"])
        if COMMAND_ID in data:
            self.command_ids.add(data[COMMAND_ID])
        if data.get(EDITED):
            self._edits[data["field"]] = event.seq
        match event.kind:
            case "started":
                self._go_back(data["resumed_from"])
                self.rolling_back, self.abandoned, self.done = None, "", False
            case "done":
                self.done = True
            case "log" if "rollback" in data:
                step = self.rolling_back = data["rollback"]
                self.abandoned = data.get("folder", "")
                self._set = {key: s for key, s in self._set.items() if key[0] < step}
            case "changed" if "step" in data and data["field"] in LIVE_FIELDS:
                self._change(Setting(step=data["step"], field=data["field"], old=data["old"], new=data["new"]))
            case "checkpoint":
                self.checkpoints[data["step"]] = data["path"]
            case "sample":
                self.samples[data["path"]] = data
            case "validation":
                self.measured[data["step"]] = msgspec.convert(data, ValidationData).measure
            case "finding" if data["code"] == "validation-failed" and "step" in data:
                self.unmeasured[data["step"]] = data.get("cause", data["message"])
            case "finding" if data["code"] == "non-finite" and "step" in data:
                self.skipped.add(data["step"])
        if self._keep and event.kind in TELLING:
            self.events.append(event)

    def forget(self) -> None:
        """An attempt is under way and nothing is cut off any more: let go of the events, here and from now on."""
        self.events, self._keep = [], False

    def ahead(self, step: int) -> list[Setting]:
        """What was set after `step` steps or later, in the order of the steps: to be set again."""
        return sorted((s for s in self._set.values() if s.step >= step), key=lambda s: s.step)

    def was_set(self, field: str, value: Any, step: int) -> bool:
        """Whether the value of a field after `step` steps of the present branch was set while the run trained, and no
        edit of the job file came later."""
        changed = [e for e in self.events if e.kind == "changed" and "step" in e.data and e.data["field"] == field]
        last = next((e for e in reversed(changed) if e.data["step"] <= step), None)
        if last is None or EDITED in last.data or last.seq < self._edits.get(field, 0):
            return False
        return bool(last.data["new"] == value)

    def bad_in_a_row(self, step: int) -> int:
        """How many steps up to and with `step` were skipped without a good one between."""
        count = 0
        while step - count in self.skipped:
            count += 1
        return count

    def _change(self, setting: Setting) -> None:
        """A newer value replaces what was to come. One that is written again, on a resume, replaces nothing."""
        known = self._set.get((setting.step, setting.field))
        if known is None or known.new != setting.new:
            self._set = {key: s for key, s in self._set.items() if s.field != setting.field or s.step < setting.step}
            self._set[setting.step, setting.field] = setting

    def _go_back(self, step: int) -> None:
        """`changed` after `step` steps is written again by the new attempt; everything else of that step stands."""
        self.events = [e for e in self.events if "step" not in e.data or e.data["step"] < step + (e.kind != "changed")]
        self.checkpoints = {s: path for s, path in self.checkpoints.items() if s <= step}
        self.samples = {path: data for path, data in self.samples.items() if data["step"] <= step}
        self.measured = {s: measure for s, measure in self.measured.items() if s <= step}
        self.unmeasured = {s: why for s, why in self.unmeasured.items() if s <= step}
        self.skipped = {s for s in self.skipped if s <= step}

"""All jobs in their order: which one is meant, what holds one up, at which place each waits.

What users ask about the order is daemon.queue.list_requests's; what makes a job start or end, daemon.queue.job_queue's.
"""

from abc import ABC, abstractmethod

from daemon.queue import lookup
from daemon.queue.entry import Changed, Entry, Instruction, held
from daemon.wire.protocol import ENDED_STATES, RESUMABLE_STATES, RUNNING_STATES, JobRecord
from presets.errors import UserError
from presets.text import to_type

ENDED_HOW = {"stopped": "was stopped", "failed": "failed", "cancelled": "was cancelled"}


class Places(ABC):
    """Higher priorities first, equal ones in the order of submission; before all of them what a restart of the machine
    or a failure that passes has broken off. A held job, or one that waits for another, keeps its place and lets those
    behind it go on."""

    def __init__(self, entries: list[Entry], *, paused: str = "") -> None:
        self.entries: dict[int, Entry] = {e.record.id: e for e in entries}
        self.paused = paused  # why the jobs that are `paused` wait; "" when there are none
        self.wall = 0.0  # what to add to `now` for the time of day
        if paused and not any(e.paused for e in self.queued()):  # from before each job had its own
            for entry in self.queued():
                entry.paused = entry.record.outcome == paused
                entry.record.waiting = paused if entry.paused else ""

    @abstractmethod
    def fill(self, now: float) -> list[Instruction]:
        """Start every job whose turn it is."""

    # --- reading ----------------------------------------------------------------------------------------------

    def running(self) -> list[Entry]:
        return [e for e in self.entries.values() if e.record.state in RUNNING_STATES]

    def queued(self) -> list[Entry]:
        """All of them, also those that are held up."""
        queued = (e for e in self.entries.values() if e.record.state == "queued")
        return sorted(queued, key=lambda e: (not e.record.first, -e.record.priority, e.order))

    def find(self, key: str) -> Entry:
        """The job that is meant by a name or an id (daemon.queue.lookup). Raises UserError."""
        return lookup.find(self.entries, key)

    def require_known(self, entry: Entry) -> None:
        """Raises UserError when the job was removed while something else was waited for."""
        if self.entries.get(entry.record.id) is not entry:
            raise UserError("was removed from the list meanwhile", where=entry.record.name)

    def _user_of(self, record: JobRecord) -> JobRecord | None:
        """The other live job that uses the run folder of this one."""
        for entry in self.entries.values():
            other = entry.record
            if other.id != record.id and other.run_dir == record.run_dir and other.state not in ENDED_STATES:
                return other
        return None

    def is_free(self, record: JobRecord) -> bool:
        return self._user_of(record) is None

    def require_free(self, record: JobRecord) -> None:
        """Raises UserError when a live job uses the run folder of this one."""
        if other := self._user_of(record):
            raise UserError(
                f"job {other.id} ({other.state}) already uses the run folder {record.run_dir}",
                where=record.name,
                fix="Wait for it or stop it first, or give this job another name",
            )

    def last_place(self) -> int:
        """The order of a job that joins the queue now."""
        return 1 + max((e.order for e in self.entries.values()), default=0)

    def first_place(self) -> int:
        """The order of a job that goes before all others."""
        return min((e.order for e in self.entries.values()), default=1) - 1

    def place_for(self, record: JobRecord) -> int:
        """The position of a job that joins the queue now; 0 when it starts at once."""
        taken = {gpu for e in self.running() for gpu in held(e.record)}
        waiting: list[frozenset[str]] = []
        for entry in self.queued():
            behind = entry.record.priority < record.priority and not entry.record.first
            if behind or not may_start(entry):
                continue
            gpus = held(entry.record)
            if not taken.isdisjoint(gpus) or entry.restart_due or entry.busy:
                waiting.append(gpus)
            taken.update(gpus)
        starts = taken.isdisjoint(held(record)) and let_go(record)
        return 0 if starts else 1 + sum(not gpus.isdisjoint(held(record)) for gpus in waiting)

    # --- kept up to date --------------------------------------------------------------------------------------

    def predecessors(self, keys: list[str]) -> list[int]:
        """The ids of the jobs that one is to come after, but for those that are done. Raises UserError."""
        found = dict.fromkeys(self.find(key).record.id for key in keys)
        return [job for job in found if self.entries[job].record.state != "done"]

    def why_held(self, record: JobRecord, hold: str) -> str:
        """Why a queued job does not start, and what to do about it; "" when it may. `hold`: as Entry's."""
        failed = next((j for j in record.after if self.entries[j].record.state in RESUMABLE_STATES), None)
        if not hold and failed is None:
            return ""
        if not hold and failed is not None:  # one that is resumed is waited for again
            before = self.entries[failed].record
            hold = (
                f"It comes after {before.name} (#{before.id}), which {ENDED_HOW[before.state]}; resume that, and it"
                " waits for it again."
            )
        return f"{hold} Let it go with: {to_type('release', record.name)}"

    def _look_at_predecessors(self) -> list[Instruction]:
        """What has become of the jobs that others come after."""
        out: list[Instruction] = []
        for entry in self.queued():
            record = entry.record
            if lost := [job for job in record.after if job not in self.entries]:
                entry.hold = entry.hold or without(f"job #{lost[0]}")
            after = [j for j in record.after if j in self.entries and self.entries[j].record.state != "done"]
            changed, record.after = after != record.after, after
            why = self.why_held(record, entry.hold)
            if changed or why != record.held:
                record.held = why
                out.append(Changed(record.id))
        return out

    def _renumber(self) -> list[Instruction]:
        """Bring every job's place in the queue up to date."""
        out = self._look_at_predecessors()
        if not any(e.paused for e in self.entries.values()):
            self.paused = ""
        ahead: list[frozenset[str]] = []
        for entry in self.entries.values():
            if entry.record.state != "queued":
                entry.record.position, entry.record.held = 0, ""
        for entry in self.queued():
            record, gpus = entry.record, held(entry.record)
            position = 1 + sum(not gpus.isdisjoint(other) for other in ahead)
            if (position, entry.order) != (record.position, record.order):
                record.position, record.order = position, entry.order
                out.append(Changed(record.id))
            if may_start(entry):
                ahead.append(gpus)
        return out


def let_go(record: JobRecord) -> bool:
    """Whether neither a user nor another job holds a queued job up."""
    return not record.held and not record.after


def may_start(entry: Entry) -> bool:
    """Whether a queued job has a place in the line for its GPUs, which others do not overtake."""
    return let_go(entry.record) and not entry.paused


def without(what: str) -> str:
    """Why a job is held that was to come after one that is not there."""
    return f"It was to come after {what}, which is not in the list any more."

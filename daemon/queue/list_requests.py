"""What users ask about the list itself: priorities, places, holding, removing, renaming. Submitting, stopping and
resuming are daemon.queue.job_queue's."""

import re

import msgspec

from daemon.queue.entry import Changed, Entry, Instruction, Removed
from daemon.queue.lookup import numbered
from daemon.queue.places import Places, without
from daemon.wire.list_messages import HIGHEST_PRIORITY, Place
from daemon.wire.protocol import ENDED_STATES, RESUMABLE_STATES, RUNNING_STATES
from presets.errors import UserError
from presets.text import to_type

ON_HOLD = "On hold."


class ListRequests(Places):
    """Every method raises UserError for what makes no sense, and has changed nothing then."""

    def set_priority(self, job: int, priority: int, now: float) -> list[Instruction]:
        """That of a job that does not wait counts when it is queued again."""
        require_priority(priority)
        self.entries[job].record.priority = priority
        return [Changed(job), *self.fill(now)]

    def move(self, job: int, place: Place, now: float, *, other: int | None = None) -> list[Instruction]:
        """Give a queued job another place among all that are queued. It takes the priority of the job that it is put
        beside, where its own would not let it stand there."""
        entry = self._queued(job, "it cannot be moved: only what is queued can")
        line = [e for e in self.queued() if e is not entry]
        if place in ("before", "after"):
            assert other is not None
            if other == job:
                raise UserError(f"cannot go {place} itself", where=entry.record.name)
            beside = self._queued(other, f"another cannot go {place} it: only what is queued has a place")
            at, priority = line.index(beside) + (place == "after"), beside.record.priority
            first = beside.record.first
        elif place == "first":
            at, priority = 0, max(e.record.priority for e in [entry, *line[:1]])
            first = any(e.record.first for e in line)
        else:
            at, priority = len(line), min(e.record.priority for e in [entry, *line[-1:]])
            first = False
        entry.record.priority, entry.record.first = priority, first
        line.insert(at, entry)
        equal = [e for e in line if e.record.priority == priority]
        for one, order in zip(equal, sorted(e.order for e in equal), strict=True):
            one.order = order
        return [Changed(job), *self.fill(now)]

    def hold(self, job: int, now: float) -> list[Instruction]:
        """Keep a queued job from starting; one that a user holds already stays so."""
        entry = self._queued(job, "it cannot be held: only what is queued can")
        if entry.hold:
            return []
        entry.hold = ON_HOLD
        return [Changed(job), *self.fill(now)]

    def release(self, job: int, now: float, *, anyway: bool = False) -> list[Instruction]:
        """Let a held job go; one that is not held stays as it is. It waits no more for what did not get done, and with
        `anyway` for nothing."""
        entry = self._queued(job, "it cannot be released: only what is queued can")
        before = entry.hold, entry.record.after
        entry.hold = ""
        entry.record.after = [
            j for j in entry.record.after if not anyway and self.entries[j].record.state not in RESUMABLE_STATES
        ]
        return [] if before == ("", entry.record.after) else [Changed(job), *self.fill(now)]

    def remove(self, job: int, now: float) -> list[Instruction]:
        """Forget a queued or ended job. Those that were to come after it are held."""
        record = self.entries[job].record
        if record.state in RUNNING_STATES:
            raise UserError(
                f"is {record.state}, so it stays in the list",
                where=record.name,
                fix=f"End it first, with: {to_type('stop', record.name)} (saves), or: {to_type('cancel', record.name)}",
            )
        del self.entries[job]
        out: list[Instruction] = [Removed(job)]
        for entry in self.entries.values():
            if job in entry.record.after:
                entry.record.after = [j for j in entry.record.after if j != job]
                if entry.record.state == "queued" and record.state != "done":
                    entry.hold = entry.hold or without(f"{record.name} (#{record.id})")
                out.append(Changed(entry.record.id))
        return out + self.fill(now)

    def rename(self, job: int, name: str) -> list[Instruction]:
        """Call it otherwise: its run folder too when it has not begun, which must be free then."""
        entry = self.entries[job]
        record = entry.record
        if record.name == name:
            return []
        for other in self.entries.values():
            if other.record.name == name and other.record.id != job and other.record.state not in ENDED_STATES:
                raise UserError(
                    f"another job that has not ended is called {name}: {numbered(other.record)}",
                    where=record.name,
                    fix="Choose another name",
                )
        old = record.name
        if has_begun(entry) or record.run_name:  # or was about to, and does not start as yet
            run_name = record.run_name or record.name
            record.name, record.run_name = name, "" if run_name == name else run_name
        else:
            self.require_free(msgspec.structs.replace(record, name=name))
            file_name = record.file_name or record.name
            record.name, record.file_name = name, "" if file_name == name else file_name
        options = "((?: --[a-z-]+)*)"
        called = re.compile(rf"wanlora (\w+){options} (?:-- )?{re.escape(old)}{options}(?![\w-]|\.\w)")
        record.outcome, record.waiting, entry.busy = (
            called.sub(lambda found: to_type(found[1], name, (found[2] + found[3]).strip()), text)
            for text in (record.outcome, record.waiting, entry.busy)
        )
        return [Changed(job), *self._renumber()]

    def come_after(self, entry: Entry, predecessors: list[int]) -> None:
        """Have a job that is about to be queued again come after others."""
        job, seen, left = entry.record.id, set[int](), list(predecessors)
        while left:
            one = left.pop()
            if one == job:
                raise UserError(
                    "would come after itself", where=entry.record.name, fix="Name other jobs in --after, or none"
                )
            if one not in seen and one in self.entries:
                seen.add(one)
                left += self.entries[one].record.after
        entry.record.after = predecessors

    def _queued(self, job: int, otherwise: str) -> Entry:
        entry = self.entries[job]
        record = entry.record
        if record.state != "queued":
            ways = dict.fromkeys(("starting", "running"), f"Stop it first, with: {to_type('stop', record.name)}")
            ways |= dict.fromkeys(RESUMABLE_STATES, f"Queue it again, with: {to_type('resume', record.name)}")
            raise UserError(
                f"is {record.state}, so {otherwise}",
                where=record.name,
                fix=ways.get(record.state, ""),
            )
        return entry


def has_begun(entry: Entry) -> bool:
    """Whether there is a run under its name."""
    return entry.record.attempt > 0 or entry.resume


def require_priority(priority: int) -> None:
    """Raises UserError."""
    if not -HIGHEST_PRIORITY <= priority <= HIGHEST_PRIORITY:
        raise UserError(f"is no priority: {-HIGHEST_PRIORITY} to {HIGHEST_PRIORITY} are", where=str(priority)[:100])

"""Which job is meant by what a user types: `orbit`, `7`, `#7`, `id:7`."""

from collections.abc import Mapping

from daemon.queue.entry import Entry
from daemon.wire.protocol import ENDED_STATES, JobRecord
from presets.errors import UserError

ID_FORMS = ("#", "id:")  # a name holds neither; a shell needs quotes for the first
LONGEST_ID = 18  # digits


def find(entries: Mapping[int, Entry], key: str) -> Entry:
    """A bare number is a name first: nobody chooses an id. Of several jobs with one name the newest live one, else the
    newest. Raises UserError."""
    bare = _without_form(key)
    named = [] if bare != key else [e for e in entries.values() if e.record.name == key]
    if named:
        return max(named, key=lambda e: (e.record.state not in ENDED_STATES, e.record.id))
    if (number := _number(bare)) in entries:
        return entries[number]
    raise UserError("no such job", where=key[:100], fix="See the jobs with: wanlora jobs")


def note_on(entries: Mapping[int, Entry], key: str, taken: JobRecord) -> str:
    """Which job was taken, when `key` could have meant another; "" when there is no doubt."""
    bare = _without_form(key)
    if bare != key:
        return ""
    others = [e.record for e in entries.values() if e.record.name == key and e.record.id != taken.id]
    by_id = entries.get(_number(bare))
    if by_id is not None and by_id.record.id != taken.id and by_id.record.name != key:
        others.append(by_id.record)
    if not others:
        return ""
    shown = ", ".join(numbered(r) for r in others[-3:]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    return f"{key} means {numbered(taken)} here, and not {shown}. To name another one: id:{others[-1].id}"


def by_id(entries: Mapping[int, Entry], job: int) -> str:
    """What a user types for the job of this id: the number, unless another job is called so."""
    called = any(e.record.name == str(job) and e.record.id != job for e in entries.values())
    return f"id:{job}" if called else str(job)


def numbered(record: JobRecord) -> str:
    """`orbit (#7, running)`."""
    return f"{record.name} (#{record.id}, {record.state})"


def _without_form(key: str) -> str:
    return next((key[len(form) :] for form in ID_FORMS if key.startswith(form)), key)


def _number(text: str) -> int:
    """0, which is no job's, for what is no id."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < LONGEST_ID else 0

"""Whether a row of the job table says what a job can be: what decodes may still hold a number that no message carries,
or a folder that no disk has.

Rows are read in daemon.table.job_store.
"""

from typing import Any

import msgspec

from daemon.queue.entry import Entry

MAX_ENTRY_BYTES = 2**20
MOST = 2**53  # of any number: far from where adding one ends, and the same in every client's language

_decoder = msgspec.json.Decoder(Entry)


def read_row(text: bytes) -> Entry:
    """Raises ValueError (or RecursionError) that says what is wrong. Keys of an older version take their defaults, keys
    of a newer one are passed over."""
    if len(text) > MAX_ENTRY_BYTES:
        raise ValueError(f"it has more than {MAX_ENTRY_BYTES // 2**20} MiB")
    entry = _decoder.decode(text)
    record, trainer = entry.record, entry.trainer
    for field, number in _numbers(msgspec.to_builtins(entry), ""):
        if not -MOST < number < MOST:
            raise ValueError(f"{field} is {str(number)[:30]}")
    if record.attempt < 0 or record.pid < 0 or entry.restarts < 0 or (trainer is not None and trainer.pid <= 0):
        raise ValueError("a count or a pid in it is negative")
    names = (record.name, record.run_name or record.name, record.file_name or record.name)
    if any(name in ("", ".", "..") or "/" in name for name in names):
        raise ValueError(f"{record.name!r} is no name of a run folder")
    if not all(path.startswith("/") for path in (record.out, record.job_path)):
        raise ValueError("its paths are not absolute")
    if any("\0" in text for text in (*names, record.out, record.job_path, *record.devices)):
        raise ValueError("there is a NUL in a path")
    return entry


def _numbers(value: Any, where: str) -> list[tuple[str, float]]:
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in _numbers(inner, f"{where}.{key}".lstrip("."))]
    if isinstance(value, list):
        return [found for inner in value for found in _numbers(inner, where)]
    return [(where, value)] if isinstance(value, int | float) else []

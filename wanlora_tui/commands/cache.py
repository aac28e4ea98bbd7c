"""cache list, clear, path: the packed weights that make a second start fast."""

import sys
import time
from argparse import Namespace

import msgspec

from presets.cachefacts import CAP, CacheHeader, budget, cache_dir, clear_cache, list_cache
from presets.errors import UserError
from wanlora_tui.commands.link import say
from wanlora_tui.text import duration, expert_text, home_path, size


def show(args: Namespace) -> int:
    """One line per file, last used first; or the same as JSON."""
    folder = cache_dir()
    entries = list_cache(folder)
    if args.json:
        rows = [{"path": str(e.path), "size_bytes": e.size, "used": e.used, "damaged": e.header is None, **_told(e.header)} for e in entries]
        sys.stdout.buffer.write(msgspec.json.encode(rows) + b"\n")
        return 0
    if not entries:
        say(f"The weight cache in {home_path(str(folder))} is empty. The first start of a job fills it.")
        return 0
    table = [("SIZE", "USED", "PRECISION", "EXPERT", "MODEL")]
    for e in entries:
        ago = f"{duration(max(0.0, time.time() - e.used))} ago"
        table.append((size(e.size), ago, e.header.precision, expert_text(e.header.expert), home_path(e.header.model)) if e.header else (size(e.size), ago, "damaged", "", home_path(str(e.path))))
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    say(f"{size(sum(e.size for e in entries))} of at most {size(budget(folder, CAP))} in {home_path(str(folder))}. Empty it with: wanlora cache clear")
    return 0


def _told(header: CacheHeader | None) -> dict[str, object]:
    return {} if header is None else {name: getattr(header, name) for name in ("model", "expert", "precision", "versions")}


def clear(args: Namespace) -> int:
    """Delete all of it. Runs that go on are not disturbed."""
    folder = cache_dir()
    try:
        freed = clear_cache(folder)
    except OSError as e:
        raise UserError(f"cannot be deleted: {e.strerror or e}", where=str(e.filename or folder), fix="Check who may write there") from None
    say(f"Freed {size(freed)} in {home_path(str(folder))}. The next start of a job reads its model again.")
    return 0


def path(args: Namespace) -> int:
    """The folder, whether it is there or not."""
    print(cache_dir())
    return 0

"""cache list, clear, path: what makes a second start fast. Packed weights, latents of images, text embeddings.

What lies in them is presets.caches's; they are filled by the trainer alone.
"""

import time
from argparse import Namespace
from typing import Any

from presets.caches.cache_files import (
    CALLED,
    CAPS,
    KINDS,
    SUFFIXES,
    CacheEntry,
    CacheKind,
    budget,
    cache_folder,
    caches_dir,
    clear_cache,
)
from presets.caches.clip_scans import forget_scans
from presets.caches.tensor_cache import list_tensors
from presets.caches.weight_cache import list_cache
from presets.errors import UserError
from presets.text import human
from wanlora_tui.commands.common import print_json, print_table, say
from wanlora_tui.output.formatting import count, duration, expert_text, home_path

ONE = {"latents": "image", "texts": "text"}
Row = tuple[str, str, str, str]


def show(args: Namespace) -> int:
    """Every file of packed weights and a line for each other cache; every entry of one cache when it is named; or all
    of it as JSON."""
    kinds: tuple[CacheKind, ...] = (args.kind,) if args.kind else KINDS
    if args.json:
        print_json([row for kind in kinds for row in _objects(kind)])
        return 0
    table: list[Row] = []
    talk = []
    for kind in kinds:
        rows, total = _weights() if kind == "weights" else _tensors(kind, each=bool(args.kind))
        table += rows
        talk.append(total)
    if table:
        print_table([("CACHE", "SIZE", "USED", "WHAT"), *table])
        talk.append("Empty them with: wanlora cache clear")
    say("\n".join(talk))
    return 0


def _weights() -> tuple[list[Row], str]:
    folder = cache_folder("weights")
    entries = list_cache(folder)
    rows = [
        (
            "weights",
            human(e.size),
            _ago(e),
            (
                f"{e.about.precision}, {expert_text(e.about.expert)}, {home_path(e.about.model)}"
                if e.about
                else f"damaged: {home_path(str(e.path))}"
            ),
        )
        for e in entries
    ]
    return rows, _total("weights", sum(e.size for e in entries))


def _tensors(kind: CacheKind, *, each: bool) -> tuple[list[Row], str]:
    folder = cache_folder(kind)
    entries = list_tensors(folder)
    total = sum(e.size for e in entries)
    rows: list[Row] = [
        (kind, human(e.size), _ago(e), f"damaged: {home_path(str(e.path))}" if e.about is None else home_path(e.about))
        for e in entries
    ]
    if entries and not each:
        damaged = sum(e.about is None for e in entries)
        rows = [
            (
                kind,
                human(total),
                _ago(entries[0]),
                count(len(entries), ONE[kind]) + (f", {damaged} damaged" if damaged else ""),
            )
        ]
    return rows, _total(kind, total)


def _total(kind: CacheKind, total: int) -> str:
    folder = cache_folder(kind)
    shown = home_path(str(folder))
    if not total:
        return f"The cache of {CALLED[kind]} in {shown} is empty."
    return (
        f"{CALLED[kind].capitalize()}: {human(total)} of at most {human(budget(folder, CAPS[kind], total))} in {shown}."
    )


def _ago(entry: CacheEntry[Any]) -> str:
    return f"{duration(max(0.0, time.time() - entry.used))} ago"


def _objects(kind: CacheKind) -> list[dict[str, object]]:
    folder = cache_folder(kind)
    if kind == "weights":
        return [
            {"kind": kind, "path": str(e.path), "size_bytes": e.size, "used": e.used, "damaged": e.about is None}
            | (
                {name: getattr(e.about, name) for name in ("model", "expert", "precision", "versions")}
                if e.about
                else {}
            )
            for e in list_cache(folder)
        ]
    return [
        {
            "kind": kind,
            "path": str(e.path),
            "size_bytes": e.size,
            "used": e.used,
            "damaged": e.about is None,
            "about": e.about or "",
        }
        for e in list_tensors(folder)
    ]


def clear(args: Namespace) -> int:
    """Delete one cache, or all, and then also what is known of clips. Runs under way are not disturbed."""
    kinds: tuple[CacheKind, ...] = (args.kind,) if args.kind else KINDS
    for kind in kinds:
        folder = cache_folder(kind)
        try:
            freed = clear_cache(folder, SUFFIXES[kind])
        except OSError as e:
            raise UserError(
                f"cannot be deleted: {e.strerror or e}",
                where=str(e.filename or folder),
                fix="Check who may write there",
            ) from None
        say(f"Freed {human(freed)} of {CALLED[kind]} in {home_path(str(folder))}.")
    if not args.kind:
        forget_scans()
    return 0


def path(args: Namespace) -> int:
    """The folder of all caches, or of one, whether it is there or not."""
    print(cache_folder(args.kind) if args.kind else caches_dir())
    return 0

"""What of a base has to be fetched from the Hub, and how much of it the cache has already: asked before anything is
spent.

Nothing is fetched here: that is engine.weights.hub_download's.
"""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct, field

from presets.base.composition import Composition, NamedBase, compose, parts_text
from presets.base.hub_listing import Repository, Unreached, list_repository
from presets.base.layouts import needed_files, settings_files
from presets.base.sources import hub_cache, problem
from presets.base.tensor_files import holds_weights
from presets.disk import existing_parent
from presets.errors import UserError
from presets.findings import Finding
from presets.look import GLANCE, never_ends
from presets.text import human, sentences

TIMEOUT = 5.0  # seconds for one answer of the Hub
PATIENCE = 12.0  # seconds for all of them, names of hosts included
FRESH = 600.0  # seconds for which an answer is taken for true
SILENT = 60.0  # seconds for which it is not asked again after it gave none
LACKS_FIX = "Give a complete repository, or name another for this part"
RESERVE = 2**30  # bytes to be left on the disk

Ask = Callable[[str, str], Repository]  # (repository, field of the job) -> what it holds; raises UserError


class Fetch(Struct, frozen=True, kw_only=True):
    """What is needed of one repository."""

    repo: str
    parts: tuple[str, ...]
    total: int  # bytes
    here: int  # of them, in the cache already


class Fetching(Struct, kw_only=True):
    """What has to come before the job can train."""

    cache: str  # the Hub's, on this machine
    free: int  # bytes on its disk
    fetches: list[Fetch] = field(default_factory=list)
    unknown: str = ""  # why the Hub gave no answer; then `fetches` is not all
    problems: list[Finding] = field(default_factory=list)

    @property
    def need(self) -> int:
        """Bytes that are to come."""
        return sum(f.total - f.here for f in self.fetches)

    @property
    def text(self) -> str:
        """`53 GiB from a/b (the experts), 10 GiB from c/d (the text encoder; 2 GiB more are here already)`"""
        texts = []
        for f in self.fetches:
            here = (
                "; all of it is here already"
                if f.here >= f.total
                else f"; {human(f.here)} more are here already"
                if f.here
                else ""
            )
            texts.append(f"{human(f.total - f.here)} from {f.repo} ({parts_text(f.parts)}{here})")
        return ", ".join(texts)

    @property
    def in_sentences(self) -> str:
        """All of it in sentences."""
        known = (
            f"To be fetched from the Hub first: {self.text}."
            if self.fetches
            else "Not all of the base model is on this machine."
        )
        why = (
            f" How much {'else ' if self.fetches else ''}is to be fetched is not known, because {self.unknown}."
            if self.unknown
            else ""
        )
        return known + why + "".join(f" {sentences(p.message, p.fix)}" for p in self.problems)


def plan_fetch(
    named: NamedBase, base: Path, ask: Ask, *, cache: Path | None = None
) -> tuple[Composition, dict[str, Repository]]:
    """Where every part comes from, and the repositories that something has to come from; none where all is on this
    machine. Raises what `ask` raises."""
    listings: dict[str, Repository] = {}
    while True:
        composed = compose(named, base, cache=cache, listings={repo: found.files for repo, found in listings.items()})
        repo = next((repo for repo in composed.to_ask if repo not in listings), None)
        if repo is None:
            return composed, listings
        listings[repo] = ask(repo, next(p.field for p in composed.places.values() if p.repo == repo))


def parts_from(composed: Composition, repo: str) -> list[str]:
    """The parts that are to be fetched from a repository; of an expert that is not needed the settings are enough."""
    return [part for part, place in composed.places.items() if place.repo == repo and place.at is None]


def wanted_files(composed: Composition, named: NamedBase, found: Repository) -> list[str]:
    """The files to fetch from a repository, as far as names tell. An expert that is one file comes whole even where its
    settings would be enough: it has them in it."""
    names = settings_files(found.files) if composed.own is not None and composed.own.repo == found.repo else []
    for part in parts_from(composed, found.repo):
        spot = composed.places[part].spot
        assert spot is not None, "the Hub has listed it"
        files = needed_files(part, spot, found.files)
        names += (
            files
            if not part.startswith("transformer") or part in named.experts or spot.single
            else [n for n in files if not holds_weights(n)]
        )
    return sorted(set(names))


def fetching_of(
    named: NamedBase,
    base: Path,
    *,
    cache: Path | None = None,
    endpoint: str | None = None,
    raise_if_ended: Callable[[], None] = never_ends,
) -> Fetching | None:
    """Ask the Hub, but not for long. None when all is on this machine: then nobody is asked.

    What is wrong is a problem in the answer. `raise_if_ended` is called while the answer is waited for: what it raises
    passes through, and nothing else is raised.
    """
    composed = compose(named, base, cache=cache)
    if not composed.to_ask:
        return None
    place = hub_cache() if cache is None else cache
    out = Fetching(cache=str(place), free=shutil.disk_usage(existing_parent(place)).free)
    said: list[tuple[Composition, dict[str, Repository]] | UserError] = []
    listed: dict[str, Repository] = {}

    def ask(repo: str, at: str) -> Repository:
        try:
            found = _recent(repo, at, place, endpoint)
        except Unreached:
            raise
        except UserError as e:
            out.problems.append(problem("model-unavailable", e.what, e.fix, at=at))
            raise
        listed[repo] = found
        return found

    def run() -> None:
        try:
            said.append(plan_fetch(named, base, ask, cache=cache))
        except UserError as e:
            said.append(e)

    # looking a name up has no timeout of its own
    thread = threading.Thread(target=run, name="asking the Hub", daemon=True)
    thread.start()
    end = time.monotonic() + PATIENCE
    while thread.is_alive() and time.monotonic() < end:
        raise_if_ended()
        thread.join(GLANCE)
    answer = said[0] if said else Unreached("the Hub did not answer in time")
    if isinstance(answer, UserError):
        out.unknown = "" if out.problems else answer.what
        answer = (
            compose(named, base, cache=cache, listings={repo: found.files for repo, found in listed.items()}),
            dict(listed),
        )
    composed, listings = answer
    out.problems += [p for p in composed.problems if p not in out.problems]
    for repo, found in listings.items():
        if parts := parts_from(composed, repo):
            names = wanted_files(composed, named, found)
            files = [found.files[name] for name in names if name in found.files]
            if absent := [name for name in names if name not in found.files]:
                out.problems.append(
                    problem("model-incomplete", lacks(repo, absent), LACKS_FIX, at=composed.places[parts[0]].field)
                )
            out.fetches.append(
                Fetch(
                    repo=repo,
                    parts=tuple(parts),
                    total=sum(f.size for f in files),
                    here=sum(found.bytes_here(f) for f in files),
                )
            )
    return out


def lacks(repo: str, absent: list[str]) -> str:
    return f"the repository {repo} lacks {absent[0]}{f' and {len(absent) - 1} more files' if len(absent) > 1 else ''}"


# of this process: a wizard checks at every change
_answers: dict[tuple[str, Path, str | None], tuple[float, Repository | Unreached]] = {}


def _recent(repo: str, at: str, cache: Path, endpoint: str | None) -> Repository:
    when, known = _answers.get((repo, cache, endpoint), (0.0, None))
    if known is None or time.monotonic() - when > (SILENT if isinstance(known, Unreached) else FRESH):
        try:
            known = list_repository(repo, where=f"{at} = {repo!r}", timeout=TIMEOUT, cache=cache, endpoint=endpoint)
        except Unreached as e:
            known = e
        _answers[repo, cache, endpoint] = time.monotonic(), known
    if isinstance(known, Unreached):
        raise known
    return known

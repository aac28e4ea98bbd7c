"""A base model from the Hugging Face Hub, into the Hub's own cache: only what the run needs, checked for room before it
starts.

Weights are fetched by ranges into a file beside their place, so a download that was cut, stopped or killed goes on
where it was; what the Hub gives a SHA-256 for is verified. Files are then handed to the Hub's library, which keeps the
order of its cache.
"""

import fcntl
import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers

from presets.base.composition import Composition, NamedBase
from presets.base.fetch_plan import LACKS_FIX, RESERVE, lacks, parts_from, plan_fetch, wanted_files
from presets.base.hub_listing import HubFile, Repository, hub_error, list_repository
from presets.base.layouts import EXPERT_NAMES, WEIGHTS, joined, shards_of, weight_files
from presets.base.model_facts import settings_problems
from presets.base.safetensors_header import Damaged, json_object
from presets.disk import existing_parent
from presets.errors import UserError
from presets.text import human

Progress = Callable[[int, int, str], None]  # bytes here, bytes in all, what is done; may raise to stop the download

CONNECTIONS = 4  # files at once
TRIES = 6  # for a file, without a new byte in between
WAIT = 2.0  # seconds before the second try; twice as long before each further one
POLL = 1.0  # seconds between two looks at the progress
TIMEOUT = 30.0  # seconds without an answer
SMALL = 2**20  # bytes; what is smaller comes before anything large


class _Halted(Exception):
    """Another thread has ended the download."""


def download_model(
    named: NamedBase, base: Path, *, progress: Progress, endpoint: str | None = None, cache: Path | None = None
) -> None:
    """Bring every part of the base that is not on this machine into the Hub's cache, as far as the run needs it. Raises
    UserError.

    All repositories are asked, and room is made sure of, before anything large comes. `endpoint` and `cache` are the
    Hub's own by default.
    """

    def ask(repo: str, at: str) -> Repository:
        progress(0, 0, f"asking the Hub for {repo}")
        return list_repository(repo, where=_where(at, repo), timeout=TIMEOUT, cache=cache, endpoint=endpoint)

    composed, listings = plan_fetch(named, base, ask, cache=cache)
    if composed.problems:
        raise UserError(composed.problems[0].message, where=composed.problems[0].field, fix=composed.problems[0].fix)
    repositories = [found for repo, found in listings.items() if parts_from(composed, repo)]
    wheres = {
        found.repo: _where(composed.places[parts_from(composed, found.repo)[0]].field, found.repo)
        for found in repositories
    }
    files: dict[str, list[HubFile]] = {}
    for found in repositories:
        with _telling(found, wheres[found.repo]):
            files[found.repo] = _files(found, composed, named, progress, wheres[found.repo])
    if wrong := settings_problems(
        composed, {part: config for found in repositories for part, config in _configs(found, composed).items()}
    ):
        raise UserError(wrong[0].message, where=wrong[0].field, fix=wrong[0].fix)
    need = sum(file.size - found.bytes_here(file) for found in repositories for file in files[found.repo])
    if repositories:
        _require_room(repositories[0].cache, need, wheres[repositories[0].repo])
    total, before = sum(file.size for each in files.values() for file in each), 0
    for found in repositories:
        with _telling(found, wheres[found.repo]), _alone(found, progress):
            _bring(
                found,
                files[found.repo],
                lambda done, _, text, before=before: progress(before + done, total, text),  # type: ignore[misc]
                wheres[found.repo],
            )
            for file in files[found.repo]:
                _link(found, file)
            # notes which commit is the main one
            _link(found, min(files[found.repo], key=lambda file: file.size), revision="main")
        before += sum(file.size for file in files[found.repo])


def _where(at: str, repo: str) -> str:
    return f"{at} = {repo!r}"


@contextmanager
def _telling(found: Repository, where: str) -> Iterator[None]:
    try:
        yield
    except (errors.HTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as e:
        raise hub_error(e, found.repo, where) from e


def download_file(repo: str, name: str, *, where: str, endpoint: str | None = None, cache: Path | None = None) -> Path:
    """One small file of a repository, from the Hub's cache when it is there. Raises UserError."""
    try:
        return Path(hf_hub_download(repo, name, endpoint=endpoint, cache_dir=cache))
    except errors.RemoteEntryNotFoundError as e:
        raise UserError(
            f"the repository {repo} has no file {name}",
            where=where,
            fix=f"Look at what it holds: {constants.ENDPOINT}/{repo}/tree/main",
        ) from e
    except (errors.HTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as e:
        raise hub_error(e, repo, where) from e


def _link(found: Repository, file: HubFile, *, revision: str | None = None) -> Path:
    """The file in the cached snapshot; fetched, when its content is not there yet."""
    return Path(
        hf_hub_download(
            found.repo, file.name, revision=revision or found.commit, endpoint=found.endpoint, cache_dir=found.cache
        )
    )


def _files(found: Repository, composed: Composition, named: NamedBase, progress: Progress, where: str) -> list[HubFile]:
    """All that has to come from a repository, the largest first. What is small is fetched here: indexes tell the names
    of shards."""
    names = wanted_files(composed, named, found)
    others = [name for name in names if not name.endswith(".safetensors")]
    small = [
        name
        for name in others
        if name in found.files and (name.endswith(".index.json") or found.files[name].size < SMALL)
    ]
    for done, name in enumerate(small):
        progress(done, len(small), "downloading the model's settings")
        _link(found, found.files[name])
    weights = [name for name in names if name.endswith(".safetensors")]
    for part in parts_from(composed, found.repo):
        spot = composed.places[part].spot
        assert spot is not None, "the Hub has told"
        if part == "tokenizer" or spot.single or (part in EXPERT_NAMES and part not in named.experts):
            continue
        weights = [name for name in weights if name.rpartition("/")[0] != spot.path] + _shards(
            found, part, spot.path, where
        )
    if absent := [name for name in (*others, *weights) if name not in found.files]:
        raise UserError(lacks(found.repo, absent), where=where, fix=LACKS_FIX)
    return sorted((found.files[name] for name in (*others, *weights)), key=lambda file: -file.size)


def _configs(found: Repository, composed: Composition) -> dict[str, dict[str, Any]]:
    """The config.json of each part that comes from a repository; what is wrong with one is told when the part is
    read."""
    configs = {}
    for part in parts_from(composed, found.repo):
        spot = composed.places[part].spot
        if part in WEIGHTS and spot is not None and not spot.single:
            with suppress(OSError, Damaged):
                configs[part] = json_object((found.snapshot / spot.path / "config.json").read_bytes())
    return configs


def _shards(found: Repository, part: str, folder: str, where: str) -> list[str]:
    """The weights of a part's folder: those that its index names, where there is one, as diffusers chooses."""
    index = joined(folder, f"{WEIGHTS[part]}.safetensors.index.json")
    if index not in found.files:
        return weight_files(part, folder, found.files)
    try:
        return [joined(folder, shard) for shard in shards_of(found.snapshot / index)]
    except Damaged as e:
        raise UserError(f"{index} {e.what}", where=where, fix="Give another repository of Wan 2.2 I2V A14B") from None


def _require_room(cache: Path, need: int, where: str) -> None:
    free = shutil.disk_usage(existing_parent(cache)).free
    if need > 0 and need + RESERVE > free:
        raise UserError(
            f"{human(need)} are to be downloaded into {cache}, and its disk has {human(free)} free",
            where=where,
            fix=(
                f"Free {human(need + RESERVE - free)} there, move the Hub's cache to another disk (HF_HOME), or give a"
                " local folder"
            ),
        )


@contextmanager
def _alone(place: Repository, progress: Progress) -> Iterator[None]:
    """One download of a repository at a time on this machine; the second waits and then finds it done."""
    lock = place.cache / ".locks" / place.folder.name / "wanlora.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as f:
        while True:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress(0, 0, "another run is downloading this model: waiting for it")
                time.sleep(POLL)
        yield


def _bring(place: Repository, files: list[HubFile], progress: Progress, where: str) -> None:
    """Fetch what is missing, several files at once. Progress is what lies on the disk."""
    total, todo = sum(file.size for file in files), [file for file in files if not place.here(file)]
    began, before = time.monotonic(), sum(place.bytes_here(file) for file in files)
    halt = threading.Event()
    pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="download")
    try:
        futures = [pool.submit(_bring_one, place, file, halt, where) for file in todo]
        pending = set(futures)
        while pending:
            finished, pending = wait(pending, timeout=POLL, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
            here = sum(place.bytes_here(file) for file in files)
            rate = (here - before) / max(0.1, time.monotonic() - began)
            progress(here, total, f"downloading, {human(rate)}/s")
    finally:
        halt.set()
        pool.shutdown(cancel_futures=True)


def _bring_one(place: Repository, file: HubFile, halt: threading.Event, where: str) -> None:
    blob, partial = place.blob(file), place.partial(file)
    blob.parent.mkdir(parents=True, exist_ok=True)
    tries, pause = 0, WAIT
    while not blob.exists():
        before = place.bytes_here(file)
        try:
            _continue(place, file, halt)
            if not file.sha256 or _sha256(partial) == file.blob:
                partial.rename(blob)
                return
            partial.unlink()  # from the beginning
            what = f"{file.name} arrives damaged: its content is not what the Hub says it is"
            if (tries := tries + 1) > 1:
                raise UserError(
                    what, where=where, fix="Start again; if it stays so, look at the network between here and the Hub"
                )
        except (errors.HTTPError, OSError) as e:
            if not _passing(e):
                raise
            tries, pause = (1, WAIT) if place.bytes_here(file) > before else (tries + 1, pause * 2)
            if tries >= TRIES:
                raise
        if halt.wait(pause):
            raise _Halted


def _passing(error: Exception) -> bool:
    """Whether it may be gone in a moment: no answer, a cut connection, a limit on requests, a fault of the server."""
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    # the rest is about the disk
    return not isinstance(error, OSError) or error.errno is None or isinstance(error, ConnectionError | TimeoutError)


def _continue(place: Repository, file: HubFile, halt: threading.Event) -> None:
    """Add to the partial file what it lacks."""
    partial, url = (
        place.partial(file),
        hf_hub_url(place.repo, file.name, revision=place.commit, endpoint=place.endpoint),
    )
    if partial.exists() and partial.stat().st_size > file.size:
        partial.unlink()
    headers = build_hf_headers()
    found = get_hf_file_metadata(url, timeout=TIMEOUT, endpoint=place.endpoint)
    if urlsplit(found.location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # the token is for the Hub alone, not for the server that it sends us to
    with partial.open("ab") as f:
        http_get(
            found.location,
            f,
            resume_size=f.tell(),
            headers=headers,
            expected_size=file.size,
            displayed_filename=file.name,
            tqdm_class=_bar_of(halt),
        )


def _bar_of(halt: threading.Event) -> Any:
    """A progress bar in the eyes of the Hub's library, which shows nothing and ends the download when it is told to."""

    class Bar:
        def __init__(self, **_: object) -> None: ...

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None: ...

        def update(self, _count: float) -> None:
            if halt.is_set():
                raise _Halted

    return Bar


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()

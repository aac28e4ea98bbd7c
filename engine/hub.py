"""A base model from the Hugging Face Hub, into the Hub's own cache: only what the run needs, checked for room before it starts.

Weights are fetched by ranges into a file beside their place, so a download that was cut, stopped or killed goes on where it
was; what the Hub gives a SHA-256 for is verified. Files are then handed to the Hub's library, which keeps the order of its cache.
"""

import errno
import fcntl
import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import (
    HfApi,
    constants,
    errors,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers

from engine.sources import SUBFOLDER
from presets.check import existing_parent
from presets.errors import UserError
from presets.headers import Damaged, json_object
from presets.model import WEIGHTS, read_model
from presets.sizes import human
from presets.stages import EXPERTS, Expert

Progress = Callable[[int, int, str], None]  # bytes here, bytes in all, what is done; may raise to stop the download

CONNECTIONS = 4  # files at once
TRIES = 6  # for a file, without a new byte in between
WAIT = 2.0  # seconds before the second try; twice as long before each further one
POLL = 1.0  # seconds between two looks at the progress
TIMEOUT = 30.0  # seconds without an answer
RESERVE = 2**30  # bytes to be left on the disk
KEPT = "What was downloaded is kept, the next start goes on from there"


@dataclass(frozen=True)
class _File:
    """One file of the repository."""

    name: str
    size: int
    blob: str  # its name in the cache: the SHA-256 of a large file, git's own hash of a small one
    sha256: bool


@dataclass(frozen=True)
class _Place:
    """Where it comes from and goes to."""

    repo: str
    commit: str
    endpoint: str | None
    cache: Path

    @property
    def folder(self) -> Path:
        return self.cache / f"models--{self.repo.replace('/', '--')}"

    def blob(self, file: _File) -> Path:
        return self.folder / "blobs" / file.blob

    def partial(self, file: _File) -> Path:
        return self.folder / "blobs" / f"{file.blob}.incomplete"

    def url(self, file: _File) -> str:
        return hf_hub_url(self.repo, file.name, revision=self.commit, endpoint=self.endpoint)

    def here(self, file: _File) -> bool:
        return isinstance(try_to_load_from_cache(self.repo, file.name, cache_dir=self.cache, revision=self.commit), str)

    def link(self, file: _File, *, revision: str | None = None) -> Path:
        """The file in the cached snapshot; fetched, when its content is not there yet."""
        return Path(hf_hub_download(self.repo, file.name, revision=revision or self.commit, endpoint=self.endpoint, cache_dir=self.cache))

    def bytes_here(self, file: _File) -> int:
        for path in (self.blob(file), self.partial(file), self.blob(file)):  # which another thread may have renamed since
            with suppress(FileNotFoundError):
                return min(file.size, path.stat().st_size)
        return file.size if self.here(file) else 0


class _Halted(Exception):
    """Another thread has ended the download."""


def fetch(repo: str, experts: Iterable[Expert], *, progress: Progress, endpoint: str | None = None, cache: Path | None = None) -> Path:
    """The folder of a complete copy of `repo`, as far as a run with these experts needs it. Raises UserError.

    `endpoint` and `cache` are the Hub's own by default.
    """
    wanted = set(experts)
    cache = Path(constants.HF_HUB_CACHE) if cache is None else cache
    if (folder := _cached(repo, wanted, cache)) is not None:
        return folder
    where = f"model.path = {repo!r}"
    try:
        progress(0, 0, f"asking the Hub for {repo}")
        info = HfApi(endpoint=endpoint).model_info(repo, files_metadata=True, timeout=TIMEOUT)
        assert info.sha is not None
        place = _Place(repo, info.sha, endpoint, cache)
        files = {s.rfilename: _file_of(s) for s in info.siblings or []}
        with _alone(place, progress):
            return _bring_all(place, files, wanted, progress, where)
    except (errors.HTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as e:
        raise _told(e, repo, where) from e


def fetch_file(repo: str, name: str, *, where: str, endpoint: str | None = None, cache: Path | None = None) -> Path:
    """One small file of a repository, from the Hub's cache when it is there. Raises UserError."""
    try:
        return Path(hf_hub_download(repo, name, endpoint=endpoint, cache_dir=cache))
    except errors.RemoteEntryNotFoundError as e:
        raise UserError(f"the repository {repo} has no file {name}", where=where, fix=f"Look at what it holds: {constants.ENDPOINT}/{repo}/tree/main") from e
    except (errors.HTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as e:
        raise _told(e, repo, where) from e


def _cached(repo: str, experts: set[Expert], cache: Path) -> Path | None:
    """The cached folder, when it holds all that these experts need; nobody is asked."""
    index = try_to_load_from_cache(repo, "model_index.json", cache_dir=cache)
    if not isinstance(index, str) or lacking(Path(index).parent, experts):
        return None
    return Path(index).parent


def lacking(folder: Path, experts: set[Expert]) -> list[str]:
    """What a run with these experts misses in a diffusers folder; weights of an expert that it does not need are not missed."""
    spare = {SUBFOLDER[e] for e in EXPERTS if e not in experts}
    return [name for name in read_model(str(folder), folder).missing if not (name.split("/")[0] in spare and name.endswith(".safetensors"))]


def _file_of(sibling: Any) -> _File:
    large = sibling.lfs
    return _File(sibling.rfilename, (large.size if large else sibling.size) or 0, large.sha256 if large else sibling.blob_id, large is not None)


def _bring_all(place: _Place, files: dict[str, _File], experts: set[Expert], progress: Progress, where: str) -> Path:
    small = _small_files(files, place.repo, where)
    for done, file in enumerate(small):
        progress(done, len(small), "downloading the model's settings")
        place.link(file)
    weights = _weights(place, files, experts, where)
    _require_room(place, weights, where)
    _bring(place, weights, progress, where)
    for file in weights:
        place.link(file)
    return place.link(files["model_index.json"], revision="main").parent  # notes which commit is the main one


def _small_files(files: dict[str, _File], repo: str, where: str) -> list[_File]:
    """Settings, tokenizer and lists of shards. All parts', whichever experts are wanted: they tell what model it is."""
    if "model_index.json" not in files:
        raise UserError(f"the repository {repo} has no model_index.json, so it is no diffusers model", where=where, fix="Give a diffusers repository of Wan 2.2 I2V A14B, or download ComfyUI's four files into a folder and give that")
    names = {"model_index.json", "scheduler/scheduler_config.json"} | {name for name in files if name.startswith("tokenizer/")}
    names |= {name for part, stem in WEIGHTS.items() for name in (f"{part}/config.json", f"{part}/{stem}.safetensors.index.json")}
    return [files[name] for name in sorted(names & files.keys())]


def _weights(place: _Place, files: dict[str, _File], experts: set[Expert], where: str) -> list[_File]:
    """The safetensors files of the parts that are needed, the largest first: shards where there is a list of them, as diffusers chooses."""
    spare = {SUBFOLDER[e] for e in EXPERTS if e not in experts}
    names = []
    for part, stem in WEIGHTS.items():
        if part in spare:
            continue
        index = f"{part}/{stem}.safetensors.index.json"
        shards = {f"{stem}.safetensors"}
        if index in files:
            try:
                found = json_object(place.link(files[index]).read_bytes()).get("weight_map")
            except Damaged as e:
                raise UserError(f"{index} {e.what}", where=where, fix="Give another repository of Wan 2.2 I2V A14B") from None
            shards = set(found.values()) if isinstance(found, dict) else set()
        names += [f"{part}/{shard}" for shard in sorted(shards)]
    if absent := [name for name in names if name not in files]:
        raise UserError(f"the repository {place.repo} lacks {absent[0]}{f' and {len(absent) - 1} more files' if len(absent) > 1 else ''}", where=where, fix="Give a complete diffusers repository of Wan 2.2 I2V A14B")
    return sorted((files[name] for name in names), key=lambda file: -file.size)


def _require_room(place: _Place, files: list[_File], where: str) -> None:
    need = sum(file.size - place.bytes_here(file) for file in files)
    disk = existing_parent(place.cache)
    free = shutil.disk_usage(disk).free
    if need > 0 and need + RESERVE > free:
        short = need + RESERVE - free
        raise UserError(
            f"{human(need)} are to be downloaded into {place.cache}, and its disk has {human(free)} free", where=where,
            fix=f"Free {human(short)} there, move the Hub's cache to another disk (HF_HOME), or give a local folder",
        )  # fmt: skip


@contextmanager
def _alone(place: _Place, progress: Progress) -> Iterator[None]:
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


def _bring(place: _Place, files: list[_File], progress: Progress, where: str) -> None:
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


def _bring_one(place: _Place, file: _File, halt: threading.Event, where: str) -> None:
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
                raise UserError(what, where=where, fix="Start again; if it stays so, look at the network between here and the Hub")
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
    return not isinstance(error, OSError) or error.errno is None or isinstance(error, ConnectionError | TimeoutError)  # the rest is about the disk


def _continue(place: _Place, file: _File, halt: threading.Event) -> None:
    """Add to the partial file what it lacks."""
    partial, url = place.partial(file), place.url(file)
    if partial.exists() and partial.stat().st_size > file.size:
        partial.unlink()
    headers = build_hf_headers()
    found = get_hf_file_metadata(url, timeout=TIMEOUT, endpoint=place.endpoint)
    if urlsplit(found.location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # the token is for the Hub alone, not for the server that it sends us to
    with partial.open("ab") as f:
        http_get(found.location, f, resume_size=f.tell(), headers=headers, expected_size=file.size, displayed_filename=file.name, tqdm_class=_bar_of(halt))


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


def _told(error: BaseException, repo: str, where: str) -> UserError:
    """What went wrong, as a person needs to know it."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:  # the library's wrapping of anything that a request can meet
        return _told(error.__cause__, repo, where)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return UserError(f"{repo} is not on this machine, and HF_HUB_OFFLINE forbids asking the Hub", where=where, fix="Unset HF_HUB_OFFLINE, or give a local folder")
    if isinstance(error, errors.GatedRepoError):
        return UserError(f"{repo} is gated: its owner wants to know who downloads it", where=where, fix=f"Accept its terms on its page ({constants.ENDPOINT}/{repo}), then log in here: hf auth login")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UserError(f"the Hub has no repository {repo}, or it is private", where=where, fix="Check the id; for a private one log in: hf auth login")
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(error.response.status_code, repo, where)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"the disk became full while {repo} was downloaded", where=error.filename or where, fix=f"Free some space. {KEPT}")
    if isinstance(error, OSError) and error.filename:
        return UserError(f"{repo} could not be written ({(error.strerror or str(error)).lower()})", where=str(error.filename), fix="Check who may write there, or move the Hub's cache (HF_HOME)")
    said = str(error).strip().splitlines()
    return UserError(f"the Hub cannot be reached ({said[0] if said else type(error).__name__})", where=where, fix=f"Check the network and start again. {KEPT}. Or give a local folder")


def _refused(status: int, repo: str, where: str) -> UserError:
    if status == 429:
        return UserError("the Hub has had too many requests from here (HTTP 429)", where=where, fix=f"Wait some minutes, or log in, which raises the limit: hf auth login. {KEPT}")
    if status in (401, 403):
        return UserError(f"the Hub does not let you have {repo} (HTTP {status})", where=where, fix="Log in with an account that may: hf auth login")
    if status >= 500:
        return UserError(f"the Hub has a fault of its own (HTTP {status})", where=where, fix=f"Try again later. {KEPT}")
    return UserError(f"the Hub refuses {repo} (HTTP {status})", where=where, fix="Check the id, or give a local folder")

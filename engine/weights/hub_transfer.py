"""Files of a Hub repository onto this disk, several at once.

They come into a file beside their place, from the Hub's Xet storage (`engine.weights.hub_xet`) or by ranges over HTTP,
so a download that was cut, stopped or killed resumes where it was; what the Hub gives a SHA-256 for is verified. Which
files: `engine.weights.hub_download`.
"""

import fcntl
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers

from engine.system.progress import Progress
from engine.weights.hub_xet import XetFailed, XetStorage
from presets.base.hub_listing import HubFile, Repository
from presets.errors import UserError
from presets.text import human

CONNECTIONS = 4  # files at once
TRIES = 6  # for a file, without a new byte in between
WAIT = 2.0  # seconds before the second try; twice as long before each further one
POLL = 1.0  # seconds between two looks at the progress
TIMEOUT = 30.0  # seconds without an answer


Say = Callable[[str], None]


class _Halted(Exception):
    """Another thread has ended the download."""


@contextmanager
def alone(place: Repository, progress: Progress) -> Iterator[None]:
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


def transfer(place: Repository, files: list[HubFile], progress: Progress, say: Say, where: str) -> None:
    """Fetch what is missing, several files at once. Progress is what lies on the disk; `say` is told when another way
    is taken."""
    total, todo = sum(file.size for file in files), [file for file in files if not place.here(file)]
    began, before = time.monotonic(), sum(place.bytes_here(file) for file in files)
    halt, xet = threading.Event(), XetStorage(say)
    pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="download")
    try:
        futures = [pool.submit(_bring_one, place, file, xet, halt, where) for file in todo]
        pending = set(futures)
        while pending:
            finished, pending = wait(pending, timeout=POLL, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
            xet.end_stalled()
            here = sum(place.bytes_here(file) for file in files)
            rate = (here - before) / max(0.1, time.monotonic() - began)
            progress(here, total, f"downloading, {human(rate)}/s")
    finally:
        halt.set()
        xet.cancel()
        pool.shutdown(cancel_futures=True)


def _bring_one(place: Repository, file: HubFile, xet: XetStorage, halt: threading.Event, where: str) -> None:
    blob, partial = place.blob(file), place.partial(file)
    blob.parent.mkdir(parents=True, exist_ok=True)
    tries, pause = 0, WAIT
    while not blob.exists():
        before = place.bytes_here(file)
        try:
            by_xet = _continue(place, file, xet, halt)
            if not file.sha256 or _sha256(partial) == file.blob:
                partial.rename(blob)
                return
            partial.unlink()  # from the beginning
            what = f"{file.name} arrives damaged: its content is not what the Hub says it is"
            if by_xet:
                xet.give_up(what)
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
    """Whether it may pass in a moment: no answer, a cut connection, a limit on requests, a fault of the server."""
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    # the rest is about the disk
    return not isinstance(error, OSError) or error.errno is None or isinstance(error, ConnectionError | TimeoutError)


def _continue(place: Repository, file: HubFile, xet: XetStorage, halt: threading.Event) -> bool:
    """Add to the partial file what it lacks. Whether some of it came from the Xet storage."""
    partial, url = (
        place.partial(file),
        hf_hub_url(place.repo, file.name, revision=place.commit, endpoint=place.endpoint),
    )
    if partial.exists() and partial.stat().st_size > file.size:
        partial.unlink()
    headers = build_hf_headers()
    found = get_hf_file_metadata(url, timeout=TIMEOUT, endpoint=place.endpoint)
    by_xet = xet.usable and found.xet_file_data is not None
    if by_xet and _by_xet(xet, found.xet_file_data, partial, file, url, headers, halt):
        return True
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
    return by_xet


def _by_xet(
    xet: XetStorage,
    data: Any,
    partial: Path,
    file: HubFile,
    url: str,
    headers: dict[str, str],
    halt: threading.Event,
) -> bool:
    """Whether the rest of the file came from the Xet storage; else that is given up, and what came is kept."""
    with partial.open("ab") as f:
        if f.tell() == file.size:  # it only remains to be verified
            return True
        try:
            for piece in xet.stream(data, file.size, begin=f.tell(), url=url, headers=headers):
                f.write(piece)
                if halt.is_set():
                    raise _Halted
        except XetFailed as e:
            if halt.is_set():
                raise _Halted from None
            xet.give_up(f"{file.name}: {e}")
            return False
    return True


def _bar_of(halt: threading.Event) -> Any:
    """A progress bar for the Hub's library that shows nothing, and ends the download once `halt` is set."""

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

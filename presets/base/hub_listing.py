"""What a repository of the Hub holds, by the Hub's own word, and what of it lies in the cache. The Hub's library is
imported only when it is asked."""

import errno
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec import Struct

from presets.base.sources import hub_cache
from presets.errors import UserError

KEPT = "What was downloaded is kept, the next start continues from there"


class Unreached(UserError):
    """The Hub gave no answer for now: nothing is said about the repository."""


class HubFile(Struct, frozen=True):
    """One file of a repository."""

    name: str
    size: int
    blob: str  # its name in the cache: the SHA-256 of a large file, git's own hash of a small one
    sha256: bool


class Repository(Struct, frozen=True, kw_only=True):
    """A repository as it is now, and its place in the cache."""

    repo: str
    commit: str
    files: dict[str, HubFile]
    cache: Path
    endpoint: str | None = None  # the Hub's own by default

    @property
    def folder(self) -> Path:
        return self.cache / f"models--{self.repo.replace('/', '--')}"

    @property
    def snapshot(self) -> Path:
        return self.folder / "snapshots" / self.commit

    def blob(self, file: HubFile) -> Path:
        return self.folder / "blobs" / file.blob

    def partial(self, file: HubFile) -> Path:
        return self.folder / "blobs" / f"{file.blob}.incomplete"

    def here(self, file: HubFile) -> bool:
        return (self.snapshot / file.name).exists()

    def bytes_here(self, file: HubFile) -> int:
        # which another thread may have renamed since
        for path in (self.blob(file), self.partial(file), self.blob(file)):
            with suppress(FileNotFoundError):
                return min(file.size, path.stat().st_size)
        return file.size if self.here(file) else 0


def list_repository(
    repo: str, *, where: str, timeout: float, cache: Path | None = None, endpoint: str | None = None
) -> Repository:
    """Ask the Hub. `where` is named in errors. Raises UserError; Unreached when there was no answer."""
    from huggingface_hub import HfApi, errors

    try:
        info = HfApi(endpoint=endpoint).model_info(repo, files_metadata=True, timeout=timeout)
    except (errors.HTTPError, errors.OfflineModeIsEnabled, OSError) as e:
        raise hub_error(e, repo, where) from e
    assert info.sha is not None
    files = {s.rfilename: _file_of(s) for s in info.siblings or []}
    return Repository(
        repo=repo, commit=info.sha, files=files, cache=hub_cache() if cache is None else cache, endpoint=endpoint
    )


def _file_of(sibling: Any) -> HubFile:
    large = sibling.lfs
    return HubFile(
        sibling.rfilename,
        (large.size if large else sibling.size) or 0,
        large.sha256 if large else sibling.blob_id,
        large is not None,
    )


def hub_error(error: BaseException, repo: str, where: str) -> UserError:
    """What went wrong with a request, as a person needs to know it."""
    from huggingface_hub import constants, errors

    if isinstance(error, UserError):
        return error
    # the library's wrapping of anything that a request can meet
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        return hub_error(error.__cause__, repo, where)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return UserError(
            f"{repo} is not on this machine, and HF_HUB_OFFLINE forbids asking the Hub",
            where=where,
            fix="Unset HF_HUB_OFFLINE, or give a local folder",
        )
    if isinstance(error, errors.GatedRepoError):
        return UserError(
            f"{repo} is gated: its owner wants to know who downloads it",
            where=where,
            fix=f"Accept its terms on its page ({constants.ENDPOINT}/{repo}), then log in here: hf auth login",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return UserError(
            f"the Hub has no repository {repo}, or it is private",
            where=where,
            fix="Check the id; for a private one log in: hf auth login",
        )
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(error.response.status_code, repo, where)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"the disk became full while {repo} was downloaded",
            where=error.filename or where,
            fix=f"Free some space. {KEPT}",
        )
    if isinstance(error, OSError) and error.filename:
        return UserError(
            f"{repo} could not be written ({(error.strerror or str(error)).lower()})",
            where=str(error.filename),
            fix="Check who may write there, or move the Hub's cache (HF_HOME)",
        )
    said = str(error).strip().splitlines()
    return Unreached(
        f"the Hub cannot be reached for {repo} ({said[0] if said else type(error).__name__})",
        where=where,
        fix=f"Check the network and start again. {KEPT}. Or give a local folder",
    )


def _refused(status: int, repo: str, where: str) -> UserError:
    if status == 429:
        return Unreached(
            "the Hub has had too many requests from here (HTTP 429)",
            where=where,
            fix=f"Wait some minutes, or log in, which raises the limit: hf auth login. {KEPT}",
        )
    if status in (401, 403):
        return UserError(
            f"the Hub does not let you have {repo} (HTTP {status})",
            where=where,
            fix="Log in with an account that may: hf auth login",
        )
    if status >= 500:
        return Unreached(f"the Hub has a fault of its own (HTTP {status})", where=where, fix=f"Try again later. {KEPT}")
    return UserError(f"the Hub refuses {repo} (HTTP {status})", where=where, fix="Check the id, or give a local folder")

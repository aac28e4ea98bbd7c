"""A base model from the Hugging Face Hub, into the Hub's own cache: only what the run needs, checked for room before it
starts.

Files come by `engine.weights.hub_transfer` and are then handed to the Hub's library, which keeps its cache in order.
What has to come is worked out in `presets.base.fetch_plan`.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from huggingface_hub import constants, errors, hf_hub_download

from engine.system.progress import Progress
from engine.weights.hub_transfer import TIMEOUT, Say, alone, transfer
from presets.base.composition import Composition, NamedBase
from presets.base.fetch_plan import LACKS_FIX, RESERVE, lacks, parts_from, plan_fetch, wanted_files
from presets.base.hub_listing import HubFile, Repository, hub_error, list_repository
from presets.base.layouts import EXPERT_NAMES, WEIGHTS, index_of, stored_files
from presets.base.model_facts import settings_problems
from presets.base.safetensors_header import Damaged, json_object
from presets.base.tensor_files import holds_weights
from presets.disk import existing_parent
from presets.errors import UserError
from presets.text import human

SMALL = 2**20  # bytes; what is smaller comes before anything large


def download_model(
    named: NamedBase,
    base: Path,
    *,
    progress: Progress,
    say: Say = lambda text: None,
    endpoint: str | None = None,
    cache: Path | None = None,
) -> None:
    """Bring every part of the base that is not on this machine into the Hub's cache, as far as the run needs it. Raises
    UserError.

    All repositories are asked, and room is made sure of, before anything large comes. `say` is told of another way that
    is taken; `endpoint` and `cache` are the
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
        with _telling(found, wheres[found.repo]), alone(found, progress):
            transfer(
                found,
                files[found.repo],
                lambda done, _, text, before=before: progress(before + done, total, text),  # type: ignore[misc]
                say,
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
    """All that has to come from a repository, the largest first. What is small is fetched here: indexes have the names
    of shards."""
    names = wanted_files(composed, named, found)
    others = [name for name in names if not holds_weights(name)]
    small = [
        name
        for name in others
        if name in found.files and (name.endswith(".index.json") or found.files[name].size < SMALL)
    ]
    for done, name in enumerate(small):
        progress(done, len(small), "downloading the model's settings")
        _link(found, found.files[name])
    weights = [name for name in names if holds_weights(name)]
    for part in parts_from(composed, found.repo):
        spot = composed.places[part].spot
        assert spot is not None, "the Hub has been asked"
        if part == "tokenizer" or spot.single or (part in EXPERT_NAMES and part not in named.experts):
            continue
        weights = [name for name in weights if name.rpartition("/")[0] != spot.path] + _shards(
            found, part, spot.path, where
        )
    if absent := [name for name in (*others, *weights) if name not in found.files]:
        raise UserError(lacks(found.repo, absent), where=where, fix=LACKS_FIX)
    return sorted((found.files[name] for name in (*others, *weights)), key=lambda file: -file.size)


def _configs(found: Repository, composed: Composition) -> dict[str, dict[str, Any]]:
    """The config.json of each part that comes from a repository; what is wrong with one is said when the part is
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
    try:
        return stored_files(part, found.snapshot, folder, found.files)
    except Damaged as e:
        what = f"{index_of(part, folder)} {e.what}"
        raise UserError(what, where=where, fix="Give another repository of Wan 2.2 I2V A14B") from None


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

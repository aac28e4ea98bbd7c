"""Where a part of a base model may lie: a folder on this machine, a file, or a repository of the Hub. Which of them
each part comes from is `composition`, how parts lie inside one `layouts`."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from presets.base.layouts import CALLED, DEPTH, UNDERSTOOD, Spot, names_in
from presets.base.single_files import HOMES, SUBFOLDERS, SingleFiles, expert_of, find_single_files, look_into
from presets.base.tensor_files import SUFFIXES_TEXT, holds_weights
from presets.file_names import expanded
from presets.findings import Finding
from presets.job.hub_id import looks_like_hub_id


class Place(Struct, frozen=True, kw_only=True):
    """Where one part lies, or will lie once it is fetched."""

    part: str
    field: str  # of the job: the user chooses it there
    source: str  # the folder, file or Hub id, as it was named
    repo: str = ""  # of the Hub; "" for the user's own files
    root: Path | None = None  # the source on this machine; None: the part has to be fetched
    spot: Spot | None = None  # None: not known before the Hub is asked

    @property
    def at(self) -> Path | None:
        """Its folder or file on this machine."""
        return None if self.root is None or self.spot is None else self.root / self.spot.path


class Origin(Struct, frozen=True, kw_only=True):
    """A source in which parts are looked for."""

    field: str
    text: str  # as it was named
    alone: bool  # it was named for one part, which then may lie at its top
    repo: str = ""
    root: Path | None = None  # a folder; of a repository its cached snapshot
    file: str = ""  # in `root`: all that was named
    names: frozenset[str] | None = None  # files in it; None: not known before the Hub is asked
    singles: SingleFiles = msgspec.field(default_factory=SingleFiles)  # of them, those that are a part each
    listed: bool = False  # the Hub has just listed it: then its parts are fetched as it has them now


class HubView(NamedTuple):
    """What is known of the Hub without asking it: its cache on this machine (None: its own), and names of files by
    repository as it has listed them."""

    cache: Path | None
    listings: Mapping[str, Collection[str]]

    def origin(self, at: str, repo: str, *, alone: bool) -> Origin:
        if repo in self.listings:
            names = frozenset(self.listings[repo])
            return Origin(
                field=at,
                text=repo,
                alone=alone,
                repo=repo,
                names=names,
                singles=find_single_files(names),
                listed=True,
            )
        root = cached_snapshot(repo, self.cache)
        if root is None:
            return Origin(field=at, text=repo, alone=alone, repo=repo)
        # as the Hub's listing would be understood: its files are not all here
        names = names_in(root)
        return Origin(
            field=at, text=repo, alone=alone, repo=repo, root=root, names=names, singles=find_single_files(names)
        )


def _id_within(text: str) -> str:
    """The Hub id that is meant by the address of its page, or one with a slash too many; "" where none is."""
    found = re.fullmatch(
        r"(?:(?:https?://)?(?:huggingface\.co|hf\.co)/|hf://)?([^/]+/[^/]+)(?:/|/(?:tree|blob|resolve)/.*)?", text
    )
    return found[1] if found is not None and looks_like_hub_id(found[1]) else ""


def problem(code: str, message: str, fix: str, *, at: str = "model.path") -> Finding:
    return Finding(code=code, severity="error", field=at, message=message, fix=fix)


def folder_origin(at: str, text: str, root: Path, *, alone: bool, chosen: str = "") -> Origin:
    """A folder of the user's; `chosen` is the file of an expert in it that was named."""
    names = names_in(root)
    singles = find_single_files(names, look_into(root), chosen=chosen)
    return Origin(field=at, text=text, alone=alone, root=root, names=names, singles=singles)


def _around(file: Path) -> Path:
    """The folder in which the other parts of a base lie, one of whose experts is `file`: ComfyUI's models folder, or
    the folder around HighNoise and LowNoise, or its own."""
    for folder in list(file.parents)[:4]:
        if folder.name in SUBFOLDERS:
            return folder.parent
    own = file.parent
    return own.parent if expert_of(own.name) else own


def models_folder(origin: Origin) -> Origin | None:
    """ComfyUI's models folder around one of its folders of experts (or one in it) that was named: the other parts lie
    in its neighbours."""
    if origin.root is None or origin.repo or origin.file:
        return None
    within = next((f for f in [origin.root, *origin.root.parents][:DEPTH] if f.name in HOMES[1:]), None)
    return None if within is None else folder_origin(origin.field, str(within.parent), within.parent, alone=False)


def open_origin(at: str, text: str, base: Path, hub: HubView, *, alone: bool) -> Origin | Finding:
    """What a field of the job names: a folder, a file (`alone`), or a Hub id. A path comes before a Hub id of the same
    name, as in diffusers."""
    named = base / expanded(text)
    path = named.resolve()
    if path.is_dir():
        return folder_origin(at, text, path, alone=alone)
    named = named.parent.resolve() / named.name  # a link, as in the Hub's cache, keeps its own name
    if path.exists() and alone:
        if not holds_weights(named.name):
            fix = f"Give a folder, a {SUFFIXES_TEXT} file or a Hub id such as owner/name"
            return problem("model-missing", f"{text} is no {SUFFIXES_TEXT} file", fix, at=at)
        if re.search(r"-\d+-of-\d+$", named.stem):
            fix = f"Give its folder: {named.parent}"
            return problem("model-missing", f"{text} is one of several shards", fix, at=at)
        return Origin(
            field=at, text=text, alone=True, root=named.parent, file=named.name, names=frozenset({named.name})
        )
    called = "the model" if at == "model.path" else CALLED["vae" if at == "model.vae" else "text_encoder"]
    if path.exists():
        if holds_weights(named.name) and expert_of(named.name):
            root = _around(named)
            return folder_origin(at, str(root), root, alone=False, chosen=named.relative_to(root).as_posix())
        fix = f"Give its folder: {UNDERSTOOD}; or the file of one expert, which says high or low in its name"
        return problem("model-missing", f"{called} {text} is a single file", fix, at=at)
    if not looks_like_hub_id(text):
        what = (
            "does not exist"
            if expanded(text).is_absolute()
            else f"does not exist (looked for {path}), and it is no Hub id either"
        )
        meant = _id_within(text)
        usual = f"Give a {'folder, a file' if alone else 'folder'} or a Hub id such as owner/name"
        fix = f"Give the Hub id alone: {meant}" if meant else usual
        return problem("model-missing", f"{called} {text} {what}", fix, at=at)
    return hub.origin(at, text, alone=alone)


def hub_cache() -> Path:
    """The Hub's own cache on this machine."""
    from huggingface_hub import constants  # only now: most models are folders

    return Path(constants.HF_HUB_CACHE)


def cached_snapshot(repo: str, cache: Path | None) -> Path | None:
    """The folder of a repository's main revision in the cache, complete or not."""
    folder = (hub_cache() if cache is None else cache) / f"models--{repo.replace('/', '--')}"
    try:
        snapshot = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return snapshot if snapshot.is_dir() else None

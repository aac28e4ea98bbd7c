"""What a base model is made of, and where each of its parts comes from.

Five parts: the two experts, the VAE, the text encoder and its tokenizer. Each lies in a source: a folder on this
machine, a file, or a repository of the Hub. Within its source a part is a folder, as diffusers has it, or one of
ComfyUI's files. What the job does not name and the experts' own source does not have comes from two known repositories,
as in ai-toolkit.

`Spot` (`presets.base.layouts`) and `Place` are all that readers, sizes and downloads know of a layout, so another
layout is another way to find a spot.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from msgspec import Struct, field

from presets.base import comfy_files
from presets.base.layouts import (
    CALLED,
    EXPERT_NAMES,
    EXPERT_PART,
    PARTS,
    VOCABULARIES,
    WEIGHTS,
    Spot,
    find_part,
    is_whole,
    names_in,
)
from presets.findings import Finding
from presets.job.expert_schedule import needed_experts
from presets.job.hub_id import looks_like_hub_id
from presets.job.schema import Job

ENCODER_REPO, VAE_REPO = "ai-toolkit/umt5_xxl_encoder", "ai-toolkit/wan2.1-vae"
KNOWN = {"vae": VAE_REPO, "text_encoder": ENCODER_REPO, "tokenizer": ENCODER_REPO}
FIELDS = {
    "transformer": "model.path",
    "transformer_2": "model.path",
    "vae": "model.vae",
    "text_encoder": "model.text_encoder",
    "tokenizer": "model.text_encoder",
}


class NamedBase(Struct, frozen=True, kw_only=True):
    """What a job says of its base; empty where it leaves the choice to us."""

    path: str
    vae: str = ""
    text_encoder: str = ""
    experts: tuple[str, ...] = tuple(EXPERT_NAMES)  # those that have to be loaded; of the other the settings are enough


def named_base(job: Job) -> NamedBase:
    return NamedBase(
        path=job.model.path,
        vae=job.model.vae,
        text_encoder=job.model.text_encoder,
        experts=tuple(EXPERT_PART[e] for e in needed_experts(job)),
    )


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
    listed: bool = False  # the Hub has just told: then its parts are fetched as it has them now


class Composition(Struct, frozen=True, kw_only=True):
    """A base put together. `places` has no entry for a part that is nowhere: `problems` then say so."""

    places: dict[str, Place]
    own: Origin | None  # the experts' source; None when it leads nowhere
    problems: list[Finding] = field(default_factory=list)
    unsure: bool = False  # what the experts' repository holds besides is not known yet

    @property
    def local(self) -> bool:
        """All of it is on this machine."""
        return (
            not self.unsure
            and len(self.places) == len(PARTS)
            and all(place.at is not None for place in self.places.values())
        )

    @property
    def to_ask(self) -> list[str]:
        """The repositories to ask next for what they hold; none where something is wrong that they cannot mend."""
        if self.problems:
            return []
        absent = [place.repo for place in self.places.values() if place.repo and place.at is None]
        return absent[:1] if self.unsure else list(dict.fromkeys(absent))


def _id_within(text: str) -> str:
    """The Hub id that is meant by the address of its page, or one with a slash too many; "" where none is."""
    found = re.fullmatch(
        r"(?:(?:https?://)?(?:huggingface\.co|hf\.co)/|hf://)?([^/]+/[^/]+)(?:/|/(?:tree|blob|resolve)/.*)?", text
    )
    return found[1] if found is not None and looks_like_hub_id(found[1]) else ""


def problem(code: str, message: str, fix: str, *, at: str = "model.path") -> Finding:
    return Finding(code=code, severity="error", field=at, message=message, fix=fix)


def parts_text(parts: Collection[str]) -> str:
    """`the experts, the VAE`"""
    words = (
        ["the experts"]
        if {"transformer", "transformer_2"} <= set(parts)
        else [CALLED[p] for p in parts if p.startswith("transformer")]
    )
    return ", ".join([*words, *(CALLED[p] for p in PARTS if p in parts and not p.startswith("transformer"))])


def compose(
    named: NamedBase, base: Path, *, cache: Path | None = None, listings: Mapping[str, Collection[str]] = {}
) -> Composition:
    """Where each part of the named base comes from. `base` is where relative paths start.

    `cache` is the Hub's own by default; `listings` are names of files by repository, as the Hub has told them. Nobody
    is asked here.
    """
    problems: list[Finding] = []

    def opened(at: str, text: str, *, alone: bool) -> Origin | None:
        found = open_origin(at, text, base, alone=alone, cache=cache, listings=listings)
        if isinstance(found, Finding):
            problems.append(found)
            return None
        return found

    own = opened("model.path", named.path, alone=False)
    vae = opened("model.vae", named.vae, alone=True) if named.vae else None
    encoder = opened("model.text_encoder", named.text_encoder, alone=True) if named.text_encoder else None
    places: dict[str, Place] = {}
    if own is not None:
        for part in EXPERT_NAMES:
            if (place := _place(part, own, weights=part in named.experts)) is not None:
                places[part] = place
        problems += _expert_problems(own, places)
    unsure = (
        own is not None
        and bool(own.repo)
        and not own.listed
        and any(e in places and places[e].at is None for e in EXPERT_NAMES)
    )
    for part, origin, told in (("vae", vae, named.vae), ("text_encoder", encoder, named.text_encoder)):
        if (
            place := _choose(
                part,
                [origin] if told else [own],
                told=bool(told),
                unsure=unsure,
                problems=problems,
                cache=cache,
                listings=listings,
            )
        ) is not None:
            places[part] = place
    if "text_encoder" in places:
        where = (
            encoder
            if named.text_encoder
            else own
            if own is not None and places["text_encoder"].source == own.text
            else None
        )
        near = [where, *_beside(where, places["text_encoder"])] if where is not None else []
        if (
            place := _tokenizer_inside(places["text_encoder"])
            or _choose(
                "tokenizer",
                near,
                told=False,
                unsure=unsure and not named.text_encoder,
                problems=problems,
                cache=cache,
                listings=listings,
            )
        ) is not None:
            places["tokenizer"] = place
    return Composition(
        places=places, own=own, problems=problems, unsure=unsure and not (named.vae and named.text_encoder)
    )


def open_origin(
    at: str, text: str, base: Path, *, alone: bool, cache: Path | None, listings: Mapping[str, Collection[str]]
) -> Origin | Finding:
    """What a field of the job names: a folder, a file (`alone`), or a Hub id. A path comes before a Hub id of the same
    name, as in diffusers."""
    named = base / Path(text).expanduser()
    path = named.resolve()
    if path.is_dir():
        return Origin(field=at, text=text, alone=alone, root=path, names=names_in(path))
    if path.exists() and alone:
        named = named.parent.resolve() / named.name  # a link, as in the Hub's cache, keeps its own name
        if named.suffix != ".safetensors":
            return problem(
                "model-missing",
                f"{text} is no safetensors file",
                "Give a folder, a .safetensors file or a Hub id such as owner/name",
                at=at,
            )
        if re.search(r"-\d+-of-\d+$", named.stem):
            return problem(
                "model-missing", f"{text} is one of several shards", f"Give its folder: {named.parent}", at=at
            )
        return Origin(
            field=at, text=text, alone=True, root=named.parent, file=named.name, names=frozenset({named.name})
        )
    called = "the model" if at == "model.path" else CALLED["vae" if at == "model.vae" else "text_encoder"]
    if path.exists():
        return problem(
            "model-missing",
            f"{called} {text} is a single file",
            "Give its folder: one with the folders transformer and transformer_2 in it, or one with ComfyUI's files",
            at=at,
        )
    if not looks_like_hub_id(text):
        what = (
            "does not exist"
            if Path(text).expanduser().is_absolute()
            else f"does not exist (looked for {path}), and it is no Hub id either"
        )
        return problem(
            "model-missing",
            f"{called} {text} {what}",
            (
                f"Give the Hub id alone: {meant}"
                if (meant := _id_within(text))
                else f"Give a {'folder, a file' if alone else 'diffusers folder'} or a Hub id such as owner/name"
            ),
            at=at,
        )
    return _of_hub(at, text, alone=alone, cache=cache, listings=listings)


def _of_hub(at: str, repo: str, *, alone: bool, cache: Path | None, listings: Mapping[str, Collection[str]]) -> Origin:
    if repo in listings:
        return Origin(field=at, text=repo, alone=alone, repo=repo, names=frozenset(listings[repo]), listed=True)
    root = cached_snapshot(repo, cache)
    return Origin(field=at, text=repo, alone=alone, repo=repo, root=root, names=names_in(root) if root else None)


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


def _place(part: str, origin: Origin, *, weights: bool = True) -> Place | None:
    """The part in one source; None when it is not there."""
    at = FIELDS[part] if part not in EXPERT_NAMES else "model.path"
    if origin.names is None:
        return Place(part=part, field=at, source=origin.text, repo=origin.repo)
    if origin.file and part == "tokenizer":
        return None
    spot = Spot(origin.file, single=True) if origin.file else find_part(part, origin.names, alone=origin.alone)
    if spot is None:
        return None
    whole = not origin.repo or (
        origin.root is not None
        and not origin.listed
        and is_whole(part, origin.root, spot, origin.names, weights=weights)
    )
    return Place(
        part=part, field=at, source=origin.text, repo=origin.repo, root=origin.root if whole else None, spot=spot
    )


def _choose(
    part: str,
    origins: Sequence[Origin | None],
    *,
    told: bool,
    unsure: bool,
    problems: list[Finding],
    cache: Path | None,
    listings: Mapping[str, Collection[str]],
) -> Place | None:
    """The part in the first source that has it; the known repository comes last, unless one was `told`."""
    for origin in origins:
        if origin is None:
            continue
        if (place := _place(part, origin)) is not None:
            return place
        if unsure:
            return Place(part=part, field=FIELDS[part], source=origin.text, repo=origin.repo)
        if (unclear := _unclear(part, origin)) is not None:
            problems.append(unclear)
            return None
    if told:
        problems.extend(_not_in(part, origin) for origin in origins if origin is not None)
        return None
    known = _of_hub(FIELDS[part], KNOWN[part], alone=True, cache=cache, listings=listings)
    place = _place(part, known)
    if place is None and not known.listed:  # a cached copy without the part is no word on what the repository has
        return Place(part=part, field=FIELDS[part], source=known.text, repo=known.repo)
    if place is None:
        problems.append(_not_in(part, known))
    return place


def _not_in(part: str, origin: Origin) -> Finding:
    stem = WEIGHTS.get(part, "tokenizer")
    where = f"the repository {origin.repo}" if origin.repo else f"the folder {origin.root}"
    looked = f"{part}/, {stem}.safetensors" if part != "tokenizer" else f"tokenizer/, {' or '.join(VOCABULARIES)}"
    return problem(
        "model-incomplete",
        f"{where} does not hold {CALLED[part]} (looked for {looked})",
        f"Name another in {FIELDS[part]}",
        at=FIELDS[part],
    )


def _unclear(part: str, origin: Origin) -> Finding | None:
    files = comfy_files.find_single_files(origin.names or ()).unclear.get(part)
    if not files:
        return None
    return problem(
        "model-incomplete",
        f"{origin.root or origin.repo} has several files for {CALLED[part]}: {', '.join(files)}",
        f"Name the one that is meant in {FIELDS[part]}",
        at=FIELDS[part],
    )


def _beside(origin: Origin, encoder: Place) -> list[Origin]:
    """Where a tokenizer may lie when the encoder's own folder or file was named: next to it, or in a folder of its own
    there."""
    if origin.repo or origin.root is None or encoder.spot is None:
        return []
    folders = (
        [origin.root, origin.root.parent] if origin.file else [origin.root.parent] if encoder.spot.path == "" else []
    )
    return [
        Origin(field=origin.field, text=origin.text, alone=i == 0 and bool(origin.file), root=f, names=names_in(f))
        for i, f in enumerate(folders)
    ]


def _tokenizer_inside(encoder: Place) -> Place | None:
    """ComfyUI's file of the encoder holds its tokenizer, too."""
    if (
        encoder.spot is None
        or not encoder.spot.single
        or (encoder.at is not None and not comfy_files.holds_tokenizer(encoder.at))
    ):
        return None
    return Place(
        part="tokenizer",
        field=encoder.field,
        source=encoder.source,
        repo=encoder.repo,
        root=encoder.root,
        spot=encoder.spot,
    )


def _expert_problems(own: Origin, places: dict[str, Place]) -> list[Finding]:
    """What keeps the two experts from being found."""
    if len(places) == len(EXPERT_NAMES) or own.names is None:
        return []
    where = f"the repository {own.repo}" if own.repo else f"the folder {own.root}"
    single = comfy_files.find_single_files(own.names)
    if any(place.spot is not None and not place.spot.single for place in places.values()):
        (lost,) = EXPERT_NAMES.keys() - places.keys()
        what = (
            f"the {EXPERT_NAMES[lost]} expert is missing: {own.root or own.repo} has no {lost}/config.json; Wan 2.2 I2V"
            " A14B has two experts, Wan 2.1 and the 5B model have one"
        )
        return [problem("model-not-i2v", what, "Complete the folder, or give a model that has both experts")]
    if single.names_experts:
        return [problem("model-incomplete", what, fix) for what, fix in comfy_files.complaints(single, where)]
    files = any(name.endswith(".safetensors") for name in own.names)
    hint = "; it holds safetensors files, so it may be in another program's layout" if files else ""
    if own.root is not None and own.root.name in EXPERT_NAMES and not own.repo:
        return [
            problem(
                "model-incomplete",
                f"{where} is one expert, and a job takes a folder with both",
                f"Give the folder around it: {own.root.parent}",
            )
        ]
    fix = (
        "Give a diffusers repository of Wan 2.2 I2V A14B, or download ComfyUI's files into a folder and give that"
        if own.repo
        else "Give the folder of a diffusers model of Wan 2.2 I2V A14B, or one with ComfyUI's files"
    )
    return [
        problem(
            "model-incomplete",
            f"{where} has neither model_index.json nor the folders transformer and transformer_2, so it is no diffusers"
            f" model{hint}",
            fix,
        )
    ]

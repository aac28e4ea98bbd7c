"""What a base model is made of, and which source each of its parts comes from.

Five parts: the two experts, the VAE, the text encoder and its tokenizer. Within its source (`sources`) a part is a
folder, as diffusers and Wan's own repository have it (`layouts`), or one file (`single_files`). What the job does not
name and the experts' own source does not have comes from two known repositories, as in ai-toolkit. What the files
themselves say is `model_facts`.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct, field

from presets.base import comfy_files
from presets.base.layouts import (
    CALLED,
    EXPERT_NAMES,
    EXPERT_PART,
    FOLDERS,
    PARTS,
    UNDERSTOOD,
    VOCABULARIES,
    WEIGHTS,
    Spot,
    find_part,
    is_whole,
    tokenizer_beside,
)
from presets.base.single_files import complaints, expert_of
from presets.base.sources import HubView, Origin, Place, folder_origin, models_folder, open_origin, problem
from presets.base.tensor_files import SUFFIXES_TEXT, holds_weights
from presets.findings import Finding
from presets.job.expert_schedule import needed_experts
from presets.job.schema import Job

ENCODER_REPO, VAE_REPO = "ai-toolkit/umt5_xxl_encoder", "ai-toolkit/wan2.1-vae"
KNOWN = {"vae": VAE_REPO, "text_encoder": ENCODER_REPO, "tokenizer": ENCODER_REPO}
MOST_NAMED = 5  # files of another layout, in one message
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
        """The repositories to ask next for what they hold; none where something is wrong that they cannot repair."""
        if self.problems:
            return []
        absent = [place.repo for place in self.places.values() if place.repo and place.at is None]
        return absent[:1] if self.unsure else list(dict.fromkeys(absent))


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

    `cache` is the Hub's own by default; `listings` are names of files by repository, as the Hub has listed them. Nobody
    is asked here.
    """
    hub = HubView(cache, listings)
    problems: list[Finding] = []
    places: dict[str, Place] = {}

    def opened(at: str, text: str, *, alone: bool) -> Origin | None:
        found = open_origin(at, text, base, hub, alone=alone)
        if isinstance(found, Origin):
            return found
        problems.append(found)
        return None

    def put(part: str, found: Place | list[Finding]) -> None:
        if isinstance(found, Place):
            places[part] = found
        else:
            problems.extend(found)

    own = opened("model.path", named.path, alone=False)
    vae = opened("model.vae", named.vae, alone=True) if named.vae else None
    encoder = opened("model.text_encoder", named.text_encoder, alone=True) if named.text_encoder else None
    unsure = False
    if own is not None:
        for part in EXPERT_NAMES:
            put(part, _place(part, own, weights=part in named.experts) or [])
        problems += _missing_experts(own, places)
        unsure = bool(own.repo) and not own.listed and any(place.at is None for place in places.values())
    around = models_folder(own) if own is not None else None
    for part, origin, text in (("vae", vae, named.vae), ("text_encoder", encoder, named.text_encoder)):
        put(part, _choose(part, [origin] if text else [own, around], hub, only=bool(text), unsure=unsure))
    if (found := places.get("text_encoder")) is not None:
        home = encoder if named.text_encoder else next((o for o in (own, around) if o and found.source == o.text), None)
        near = [home, *_beside(home, found)] if home is not None else []
        still = unsure and not named.text_encoder
        inside = _tokenizer_inside(found) or _tokenizer_beside(found, home)
        put("tokenizer", inside or _choose("tokenizer", near, hub, unsure=still))
    sure = not unsure or bool(named.vae and named.text_encoder)
    return Composition(places=places, own=own, problems=problems, unsure=not sure)


def _place(part: str, origin: Origin, *, weights: bool = True) -> Place | None:
    """The part in one source; None when it is not there."""
    at = FIELDS[part]
    if origin.names is None:
        return Place(part=part, field=at, source=origin.text, repo=origin.repo)
    if origin.file and part == "tokenizer":
        return None
    spot = (
        Spot(origin.file, single=True)
        if origin.file
        else find_part(part, origin.names, origin.singles, alone=origin.alone)
    )
    if spot is None:
        return None
    return _placed(part, origin, spot, weights=weights)


def _placed(part: str, origin: Origin, spot: Spot, *, weights: bool) -> Place:
    whole = not origin.repo or (
        origin.root is not None
        and origin.names is not None
        and not origin.listed
        and is_whole(part, origin.root, spot, origin.names, weights=weights)
    )
    return Place(
        part=part,
        field=FIELDS[part],
        source=origin.text,
        repo=origin.repo,
        root=origin.root if whole else None,
        spot=spot,
    )


def _choose(
    part: str, origins: Sequence[Origin | None], hub: HubView, *, unsure: bool, only: bool = False
) -> Place | list[Finding]:
    """The part in the first source that has it, or what is wrong; the known repository comes last, unless these are the
    `only` ones."""
    for origin in origins:
        if origin is None:
            continue
        if (place := _place(part, origin)) is not None:
            return place
        if unsure:
            return Place(part=part, field=FIELDS[part], source=origin.text, repo=origin.repo)
        if (unclear := _unclear(part, origin)) is not None:
            return [unclear]
    if only:
        return [_not_in(part, origin) for origin in origins if origin is not None]
    known = hub.origin(FIELDS[part], KNOWN[part], alone=True)
    place = _place(part, known)
    if place is None and not known.listed:  # a cached copy without the part is no word on what the repository has
        return Place(part=part, field=FIELDS[part], source=known.text, repo=known.repo)
    return place or [_not_in(part, known)]


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
    files = origin.singles.unclear.get(part)
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
        folder_origin(origin.field, origin.text, f, alone=i == 0 and bool(origin.file)) for i, f in enumerate(folders)
    ]


def _tokenizer_inside(encoder: Place) -> Place | None:
    """ComfyUI's file of the encoder holds its tokenizer, too."""
    if (
        encoder.spot is None
        or not encoder.spot.single
        or not encoder.spot.path.endswith(".safetensors")
        or (encoder.at is not None and not comfy_files.holds_tokenizer(encoder.at))
    ):
        return None
    return msgspec.structs.replace(encoder, part="tokenizer")


def _tokenizer_beside(encoder: Place, home: Origin | None) -> Place | None:
    """A tokenizer that lies with the encoder's file, in a folder that holds several parts."""
    if home is None or home.names is None or home.file or encoder.spot is None or not encoder.spot.single:
        return None
    spot = tokenizer_beside(encoder.spot.path, home.names)
    return None if spot is None else _placed("tokenizer", home, spot, weights=True)


def _missing_experts(own: Origin, places: dict[str, Place]) -> list[Finding]:
    """What keeps the two experts from being found."""
    if len(places) == len(EXPERT_NAMES) or own.names is None:
        return []
    where = f"the repository {own.repo}" if own.repo else f"the folder {own.root}"
    if any(place.spot is not None and not place.spot.single for place in places.values()):
        (lost,) = EXPERT_NAMES.keys() - places.keys()
        (found,) = (place.spot.path for place in places.values() if place.spot is not None)
        folder = FOLDERS[lost][FOLDERS[next(iter(places))].index(found)]
        what = (
            f"the {EXPERT_NAMES[lost]} expert is missing: {own.root or own.repo} has no {folder}/config.json; Wan 2.2"
            " I2V A14B has two experts, Wan 2.1 and the 5B model have one"
        )
        return [problem("model-not-i2v", what, "Complete the folder, or give a model that has both experts")]
    if own.singles.names_experts:
        said = complaints(own.singles, where, local=not own.repo)
        return [problem("model-incomplete", what, fix) for what, fix in said]
    if own.root is not None and (own.root.name in EXPERT_NAMES or expert_of(own.root.name)) and not own.repo:
        what = f"{where} is one expert, and a job takes a folder with both"
        return [problem("model-incomplete", what, f"Give the folder around it: {own.root.parent}")]
    what = f"{where} holds no two experts of Wan 2.2 in a layout that is understood: {_held(own)}"
    inside = next(
        (
            n.removesuffix(f"/{f}/config.json")
            for f in FOLDERS["transformer"]
            for n in sorted(own.names)
            if n.endswith(f"/{f}/config.json")
        ),
        "",
    )
    fix = (
        f"Give the folder in it: {own.root / inside}" if inside and own.root and not own.repo else f"Give {UNDERSTOOD}"
    )
    return [problem("model-incomplete", what, fix)]


def _held(own: Origin) -> str:
    """What is found instead, in words."""
    assert own.names is not None
    weights = sorted((n for n in own.names if holds_weights(n)), key=lambda n: (n.count("/"), n))
    if not weights:
        return f"no file of weights ({SUFFIXES_TEXT})"
    more = f" and {len(weights) - MOST_NAMED} more" if len(weights) > MOST_NAMED else ""
    return f"found {', '.join(weights[:MOST_NAMED])}{more}"

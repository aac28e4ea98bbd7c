"""Facts of a base model, read from JSON files and headers of weights alone, whichever sources its parts come from.

Layout of diffusers (WanImageToVideoPipeline): model_index.json with boundary_ratio; transformer (high noise) and
transformer_2 (low noise), each with config.json and weights in one or more shards; vae, text_encoder, tokenizer,
scheduler. Without model_index.json the parts tell: two experts with 36 input channels are I2V A14B. Where parts lie:
`presets.base.composition`. No weight is loaded: a header tells every tensor's type, shape and place, so a truncated
shard shows at once.
"""

from itertools import product
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from presets.base.composition import KNOWN, Composition, NamedBase, compose, parts_text
from presets.base.layouts import EXPERT_NAMES, WEIGHTS
from presets.base.part_facts import PartFacts, ReadPart, given_config, read_config, read_part, wrong_file
from presets.base.single_files import I2V_CHANNELS
from presets.base.sources import Place, problem
from presets.base.tensor_files import holds_weights
from presets.base.vocabulary import mismatch, vocabulary_size
from presets.files import same_weights
from presets.findings import Finding

LATENT_CHANNELS = 16
I2V_BOUNDARY = 0.9  # of Wan 2.2 I2V A14B's own model_index.json
VAE_CLASS = "AutoencoderKLWan"
LEAST_COPY = 2**20  # bytes; smaller files may be alike and hold no weights to speak of


class ModelFacts(Struct, frozen=True, kw_only=True):
    """A base model. Numbers are 0 where they are not known: always so for experts that are not on this machine."""

    path: str  # as the job names it
    local: bool  # False when a part has to be downloaded first
    folder: str = ""  # absolute, of the experts; "" when they are not local
    in_channels: int = 0
    out_channels: int = 0
    num_layers: int = 0
    width: int = 0  # of the residual stream: heads x head size
    heads: int = 0  # of its attention
    ffn: int = 0  # inner width of the feed-forward
    boundary_ratio: float | None = None
    parameters: int = 0  # of both experts together
    size_bytes: int = 0  # of all weights on disk
    parts: dict[str, PartFacts] = field(default_factory=dict)
    # of each part that was found, as somebody named it: a path or a Hub id
    sources: dict[str, str] = field(default_factory=dict)
    # what has to be downloaded, in words; the Hub may hold parts otherwise than is known here
    absent: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # files that should be there, relative to their source
    problems: list[Finding] = field(default_factory=list)


def read_model(named: NamedBase, base: Path, *, cache: Path | None = None) -> ModelFacts:
    """Facts of the base that a job names, with everything wrong about it in `problems`. Raises nothing for bad input,
    and asks nobody.

    `base` is where relative paths start, `cache` the Hub's own by default.
    """
    return facts_of(named, compose(named, base, cache=cache))


def facts_of(named: NamedBase, composed: Composition) -> ModelFacts:
    """Facts of a base whose parts were found: of those that are here."""
    problems = list(composed.problems)
    missing: list[str] = []
    read = {
        part: read_part(place) for part, place in composed.places.items() if place.at is not None and part in WEIGHTS
    }
    for part, found in read.items():
        spared = part in EXPERT_NAMES and part not in named.experts and composed.places[part].repo
        problems += found.problems
        missing += [name for name in found.missing if not (spared and holds_weights(name))]
    problems += _incomplete(composed, read, missing)
    experts = {part: read[part] for part in EXPERT_NAMES if part in read}
    problems += [*_expert_problems(experts), *_one_for_both(experts)]
    problems += [*_vae_problems(composed.places, read), *_encoder_problems(composed.places, read, experts)]
    boundary, unclear = _boundary(composed, experts, missing)
    if len(experts) == len(EXPERT_NAMES):
        problems += unclear
    first = next((p.config for p in experts.values() if p.config), {})
    root = (
        composed.places["transformer"].root
        if "transformer" in experts
        else composed.own.root
        if composed.own and not composed.own.repo
        else None
    )
    return ModelFacts(
        path=named.path,
        local=composed.local or bool(composed.problems),
        folder=str(root or ""),
        in_channels=_whole(first, "in_channels"),
        out_channels=_whole(first, "out_channels"),
        num_layers=_whole(first, "num_layers"),
        width=_whole(first, "num_attention_heads") * _whole(first, "attention_head_dim"),
        heads=_whole(first, "num_attention_heads"),
        ffn=_whole(first, "ffn_dim"),
        boundary_ratio=boundary,
        parameters=sum(p.facts.parameters for p in experts.values()),
        size_bytes=sum(p.facts.size_bytes for p in read.values()),
        parts={part: p.facts for part, p in read.items()},
        sources={part: place.source for part, place in composed.places.items() if place.at is not None},
        absent=_absent(composed),
        missing=missing,
        problems=problems,
    )


def settings_problems(composed: Composition, configs: dict[str, dict[str, Any]]) -> list[Finding]:
    """What the config.json of parts tell before their weights are here."""
    read = {part: ReadPart(config=given_config(part, config)) for part, config in configs.items()}
    experts = {part: found for part, found in read.items() if part in EXPERT_NAMES}
    return [
        *_expert_problems(experts),
        *_vae_problems(composed.places, read),
        *_encoder_problems(composed.places, read, experts),
    ]


def _absent(composed: Composition) -> list[str]:
    """`the VAE from ai-toolkit/wan2.1-vae`. Before the experts' repository has been listed, also where
    the rest would come from."""
    by_repo: dict[str, list[str]] = {}
    for part, place in composed.places.items():
        if place.at is None:
            by_repo.setdefault(place.repo, []).append(part)
    texts = {repo: f"{parts_text(parts)} from {repo}" for repo, parts in by_repo.items()}
    if (
        composed.unsure
        and composed.own is not None
        and (others := [part for part in by_repo[composed.own.repo] if part in KNOWN])
    ):
        elsewhere = dict.fromkeys(KNOWN[part] for part in others)
        texts[composed.own.repo] += f" ({parts_text(others)} from {' and '.join(elsewhere)}, if that lacks them)"
    return list(texts.values())


def _incomplete(composed: Composition, read: dict[str, ReadPart], missing: list[str]) -> list[Finding]:
    """One finding for each source that lacks files of a part which it has."""
    lost: dict[str, dict[str, str]] = {}  # source -> missing file -> field
    for part, found in read.items():
        place = composed.places[part]
        lost.setdefault(str(place.root), {}).update({name: place.field for name in found.missing if name in missing})
    return [
        problem(
            "model-incomplete",
            f"missing in the model folder {root}: {', '.join(names)}",
            "Download the model again; what is there already is kept",
            at=at.pop() if len(at := set(names.values())) == 1 else "model.path",
        )
        for root, names in lost.items()
        if names
    ]


def _whole(config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    return value if isinstance(value, int) else 0


def _expert_problems(experts: dict[str, ReadPart]) -> list[Finding]:
    """What makes the two experts something else than Wan 2.2 I2V A14B. The channels are those of the weights
    themselves, where they are known."""
    wrong = []
    # a damaged config.json is said already
    configs = {expert: part.config for expert, part in experts.items() if part.config}
    inputs = {expert: _channels(experts[expert]) or _whole(config, "in_channels") for expert, config in configs.items()}
    for count in sorted({n for n in inputs.values() if n != I2V_CHANNELS}):
        kind = {16: "a text-to-video model", 48: "the 5B model"}.get(count, "another model")
        here = [expert for expert, n in inputs.items() if n == count]
        one = f"the {EXPERT_NAMES[here[0]]} expert ({here[0]}) takes"
        who = f"both experts ({', '.join(here)}) take" if len(here) > 1 else one
        wrong.append(f"{who} {count} input channels, so this is {kind}; image-to-video takes {I2V_CHANNELS}")
    for expert in (e for e, n in inputs.items() if n == I2V_CHANNELS):
        config = configs[expert]
        if _whole(config, "in_channels") != I2V_CHANNELS or _whole(config, "out_channels") != LATENT_CHANNELS:
            wrong.append(
                f"{expert}/config.json says in_channels {config.get('in_channels')} and out_channels"
                f" {config.get('out_channels')}; Wan 2.2 I2V A14B has {I2V_CHANNELS} and {LATENT_CHANNELS}"
            )
    sizes = ("num_layers", "num_attention_heads", "attention_head_dim", "ffn_dim")
    if len({tuple(config.get(name) for name in sizes) for config in configs.values()}) > 1:
        wrong.append("the two experts differ in their layers or widths, so they are not of one model")
    return [problem("model-not-i2v", what, "Give Wan 2.2 I2V A14B") for what in wrong]


def _one_for_both(experts: dict[str, ReadPart]) -> list[Finding]:
    """Whether one file serves as both experts, by links, under two names or as a copy."""
    high, low = (experts[e].files if e in experts else [] for e in EXPERT_NAMES)
    for one, other in product(high, low):
        try:
            same = same_weights(one, other) and (one.samefile(other) or one.stat().st_size >= LEAST_COPY)
        except OSError:  # it was there a moment ago
            continue
        if same:
            how = "are one file" if one.samefile(other) else "hold the same weights"
            what = f"{one} (high noise) and {other} (low noise) {how}; Wan 2.2 I2V A14B has two experts that differ"
            return [problem("model-experts-same", what, "Put the other expert's own file in the place of one of them")]
    return []


def _channels(expert: ReadPart) -> int:
    shape = expert.shapes.get("patch_embedding.weight", ())
    return shape[1] if len(shape) > 1 else 0


def _vae_problems(places: dict[str, Place], read: dict[str, ReadPart]) -> list[Finding]:
    if "vae" not in read:
        return []
    place, config = places["vae"], read["vae"].config
    kind, channels = config.get("_class_name", VAE_CLASS), config.get("z_dim", LATENT_CHANNELS)
    if kind != VAE_CLASS:
        return [wrong_file(place, f"its config.json says {kind}")]
    if channels != LATENT_CHANNELS:
        return [
            wrong_file(
                place, f"it has {channels} latent channels{', as the VAE of the 5B model' if channels == 48 else ''}"
            )
        ]
    return []


def _encoder_problems(
    places: dict[str, Place], read: dict[str, ReadPart], experts: dict[str, ReadPart]
) -> list[Finding]:
    """Whether the text encoder is UMT5, as wide as the experts take it, and of one kind with its tokenizer."""
    if "text_encoder" not in read:
        return []
    place, part = places["text_encoder"], read["text_encoder"]
    kind = part.config.get("model_type", "umt5")
    if kind != "umt5":
        return [wrong_file(place, f"its config.json says {kind}")]
    second = "encoder.block.1.layer.0."
    if (
        any(name.startswith(second) for name in part.shapes)
        and f"{second}SelfAttention.relative_attention_bias.weight" not in part.shapes
    ):
        return [wrong_file(place, "only its first layer has a relative attention bias, as in T5")]
    table = next(
        (
            part.shapes[name]
            for name in ("shared.weight", "encoder.embed_tokens.weight")
            if len(part.shapes.get(name, ())) == 2
        ),
        (0, 0),
    )
    rows, width = table[0] or _whole(part.config, "vocab_size"), table[1] or _whole(part.config, "d_model")
    taken = next((_whole(e.config, "text_dim") for e in experts.values() if e.config), 0)
    if width and taken and width != taken:
        return [wrong_file(place, f"it is {width} wide, and the experts take {taken}")]
    tokenizer = places.get("tokenizer")
    at = tokenizer.at if tokenizer is not None else None
    pieces = vocabulary_size(at) if at is not None else None
    if tokenizer is not None and pieces and rows and (why := mismatch(pieces, rows)):
        return [
            problem(
                "text-encoder-wrong",
                f"the text encoder {place.source} and the tokenizer {tokenizer.source} do not belong together: {why}",
                "Give the encoder with its own tokenizer",
                at=tokenizer.field,
            )
        ]
    return []


def _boundary(
    composed: Composition, experts: dict[str, ReadPart], missing: list[str]
) -> tuple[float | None, list[Finding]]:
    """(boundary_ratio, what is wrong with it): the model's own, else that of I2V A14B where the experts prove to be
    it."""
    own, problems = composed.own, list[Finding]()
    if own is None or own.root is None or "transformer" not in experts:
        return None, problems
    spot = composed.places["transformer"].spot
    if not (own.root / "model_index.json").exists() or (spot is not None and spot.single):
        # an expert that nobody needs may not be here
        inputs = {_channels(e) or _whole(e.config, "in_channels") for e in experts.values()} - {0}
        proven = len(experts) == len(EXPERT_NAMES) and inputs == {I2V_CHANNELS}
        return (I2V_BOUNDARY if proven else None), problems
    index = read_config(own.root / "model_index.json", own.root, "model.path", missing, problems)
    boundary = (index or {}).get("boundary_ratio")
    if isinstance(boundary, int | float) and 0 < boundary < 1:
        return float(boundary), problems
    problems.append(
        Finding(
            code="model-no-boundary",
            severity="error",
            field="model.boundary",
            message=(
                "the model's model_index.json names no boundary_ratio between 0 and 1, so the job must set"
                f" model.boundary; Wan 2.2 I2V has {I2V_BOUNDARY}"
            ),
            fix=f"Set model.boundary = {I2V_BOUNDARY}",
            set={"model.boundary": I2V_BOUNDARY},
        )
    )
    return None, problems

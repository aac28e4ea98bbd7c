"""Which linears of which blocks carry a LoRA, each with its rank, alpha and learning rate: one function over the job.

Whoever needs to know asks here: the trainer, what a plan and a checkpoint weigh, a file's metadata, the rules. Which
experts learn, and with what rank and rate where no layer has its own, is `presets.job.expert_schedule`'s.

A layer has two names, in diffusers' spelling (`blocks.7.attn1.to_q`) and in Wan's own (`blocks.7.self_attn.q`). A
pattern names layers by their blocks (`blocks.7`, `blocks.0-19`), by words that follow one another in either name behind
the block (`attn1`, `cross_attn.k`, `q`, `ffn`), or by both (`blocks.30-39.ffn`).
"""

import re
from collections.abc import Iterable
from functools import lru_cache

from msgspec import Struct

from presets.errors import UserError
from presets.job.expert_schedule import Expert, alpha_of, rank_of
from presets.job.fields import nearest
from presets.job.schema import Job

# the ten linears of a block in the order in which they compute: diffusers' name -> Wan's own
WAN_NAMES = {
    f"{attention}.{ours}": f"{wan}.{letter}"
    for attention, wan in (("attn1", "self_attn"), ("attn2", "cross_attn"))
    for ours, letter in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"))
} | {"ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2"}
MOST_LAYOUTS = 8  # see `block_layouts`: engine.system.device.VARIANTS has room for so many of each expert
EXAMPLES = 'Patterns are such as "self_attn", "cross_attn.k", "ffn", "blocks.0-19" and "blocks.30-39.ffn"'
_BLOCKS = re.compile(r"blocks\.(\d+)(?:-(\d+))?(?:\.(.+))?")


class TrainedLayer(Struct, frozen=True):
    """One linear that trains."""

    block: int
    linear: str  # in diffusers' spelling: "attn1.to_q"
    rank: int
    alpha: float
    lr_factor: float  # its learning rate is the expert's times this

    @property
    def name(self) -> str:
        return f"blocks.{self.block}.{self.linear}"


class Pattern(Struct, frozen=True):
    """Layers by block and linear."""

    blocks: range
    linears: frozenset[str]

    def fits(self, block: int, linear: str) -> bool:
        return block in self.blocks and linear in self.linears


def read_pattern(text: str, blocks: int) -> Pattern:
    """The layers that a pattern names in a model of so many blocks. Raises UserError when it names none, or a block
    that the model does not have."""
    match = _BLOCKS.fullmatch(text)
    first, last, words = (int(match[1]), int(match[2] or match[1]), match[3] or "") if match else (0, blocks - 1, text)
    if last < first:
        raise UserError(f'"{text}" ends before it begins', fix=f"Write blocks.{last}-{first}")
    if last >= blocks:
        raise UserError(f'"{text}" goes beyond the model\'s last block, {blocks - 1}', fix=EXAMPLES)
    linears = frozenset(n for n, wan in WAN_NAMES.items() if not words or _within(words, n) or _within(words, wan))
    if not text or not linears or words[:1].isdigit():
        near = f"blocks.{text}" if re.fullmatch(r"\d+(-\d+)?", text) else nearest(words, _known_words())
        before = text.removesuffix(words) if match and near else ""
        raise UserError(
            f'"{text}" names no layer of Wan', fix=f"Did you mean {before}{near}? {EXAMPLES}" if near else EXAMPLES
        )
    return Pattern(range(first, last + 1), linears)


def _within(words: str, name: str) -> bool:
    return f".{words}." in f".{name}."


def _known_words() -> list[str]:
    """All that a pattern can say of a linear."""
    names = [name.split(".") for pair in WAN_NAMES.items() for name in pair]
    runs = [words[i:j] for words in names for i in range(len(words)) for j in range(i + 1, len(words) + 1)]
    return sorted({".".join(run) for run in runs if not run[0].isdigit()})


def lora_layers(job: Job, expert: Expert, blocks: int) -> list[TrainedLayer]:
    """The layers of an expert's LoRA, by block and in the order in which they compute.

    Those that `target.include` names (all, where it is empty) less those of `target.exclude`. A layer's rank is that of
    the last table of `target.layers` that names the layer and has a rank, else the expert's own, else `target.rank`;
    its alpha keeps the common alpha / rank. Its learning rate is the expert's times the `lr_factor` of the last table
    that has one. Raises UserError for a pattern that names nothing.
    """
    target = job.target
    tables = tuple((table.match, table.rank, table.lr_factor) for table in target.layers)
    rank, scale = rank_of(job, expert), scale_of(job, expert)
    return list(_layers(rank, scale, tuple(target.include), tuple(target.exclude), tables, blocks))


@lru_cache(maxsize=64)  # plans, rules and recommendations ask for the same few again and again
def _layers(
    rank: int,
    scale: float,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    tables: tuple[tuple[str, int | None, float | None], ...],
    blocks: int,
) -> tuple[TrainedLayer, ...]:
    wanted, unwanted = ([read_pattern(text, blocks) for text in texts] for texts in (include, exclude))
    own = [(read_pattern(match, blocks), its_rank, its_factor) for match, its_rank, its_factor in tables]
    out = []
    for block in range(blocks):
        for linear in WAN_NAMES:
            if (wanted and not _any(wanted, block, linear)) or _any(unwanted, block, linear):
                continue
            of_layer, factor = rank, 1.0
            for pattern, its_rank, its_factor in own:
                if pattern.fits(block, linear):
                    of_layer = of_layer if its_rank is None else its_rank
                    factor = factor if its_factor is None else its_factor
            out.append(TrainedLayer(block, linear, of_layer, of_layer * scale, factor))
    return tuple(out)


def _any(patterns: Iterable[Pattern], block: int, linear: str) -> bool:
    return any(pattern.fits(block, linear) for pattern in patterns)


def scale_of(job: Job, expert: Expert) -> float:
    """alpha / rank, the same in all layers of an expert: what its low-rank products are multiplied with."""
    return alpha_of(job, expert) / rank_of(job, expert)


def block_layouts(layers: Iterable[TrainedLayer], blocks: int) -> int:
    """How many kinds of blocks there are by the linears that train and their ranks: each is compiled by itself."""
    kinds: dict[int, list[tuple[str, int]]] = {block: [] for block in range(blocks)}
    for layer in layers:
        kinds[layer.block].append((layer.linear, layer.rank))
    return len({tuple(kind) for kind in kinds.values()})

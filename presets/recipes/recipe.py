"""Recipes: what the guide advises, as data: `presets/recipes/KIND.toml` for each kind of LoRA, `tiers.toml` for each
size of GPU."""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from presets.job.schema import Kind

RECIPES = Path(__file__).parent


class Advised(Struct, frozen=True, forbid_unknown_fields=True):
    """A value and why it is advised. It may be the plain default: then the recipe keeps it on purpose."""

    value: Any
    reason: str


class Range(Struct, frozen=True, forbid_unknown_fields=True):
    low: int
    high: int


class Tier(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What changes from `from_gib` of VRAM on, until the next tier begins."""

    name: str
    from_gib: float
    frames: Range  # frame counts that suit this much memory
    start_frames: int  # where to begin when the clips do not say
    resolutions: list[int]
    reason: str  # for the resolutions
    values: dict[str, Advised] = field(default_factory=dict)


class Recipe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    title: str
    about: str  # what to collect, for the wizard
    clips: Range  # how many clips it takes; more than `high` does no harm
    steps: Range  # from `clips.low` clips to `clips.high` clips
    caption: str  # an example of a good caption
    default_caption: str  # for clips without one; "" when only the user can say it
    sampling: str  # "uniform", or "realtime-if-long-enough"
    values: dict[str, Advised]


@cache
def load_recipe(kind: Kind) -> Recipe:
    """The recipe of a kind. A recipe that does not parse is a bug: msgspec.ValidationError passes through."""
    return msgspec.convert(tomllib.loads((RECIPES / f"{kind}.toml").read_text("utf-8")), Recipe)


@cache
def load_tiers() -> list[Tier]:
    """All tiers, by rising memory; the first begins at 0."""
    raw = tomllib.loads((RECIPES / "tiers.toml").read_text("utf-8"))
    return msgspec.convert(raw["tiers"], list[Tier])


def tier_for(vram_gib: float) -> Tier:
    return [t for t in load_tiers() if t.from_gib <= vram_gib][-1]

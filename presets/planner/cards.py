"""Known cards and what is guessed of unknown ones: from a GPU, or a card's name, to `Hardware`.

Rates that were measured on this machine, which count more, are presets.planner.measured_rates's.
"""

import difflib
import re
import tomllib
from functools import cache
from pathlib import Path

import msgspec
from msgspec import Struct

from presets.errors import UserError
from presets.machine.gpus import Gpu
from presets.machine.machine import Machine
from presets.planner.measured_rates import Rates, recall
from presets.planner.sizes import GIB
from presets.planner.workload import Hardware

CARDS = Path(__file__).with_name("cards.toml")
DRIVER_BYTES = int(0.4 * GIB)  # what a driver keeps of an idle card, a small desktop included
# What an H200 reaches of its sheet's numbers, measured: device copies 4.3 of 4.8 TB/s, float8 products 1500 TFLOP/s of
# a sheet that says twice its bf16 (787 held), exact attention 676 forward and 428 backward.
MEMORY_SHARE, FLOAT8_SHARE, FORWARD_SHARE, BACKWARD_SHARE = 0.9, 0.95, 0.86, 0.54
# Our int8 products, with the rotations and the quantizing around them, of the int8 rate that the card sustains: what an
# H100 reaches over two passes forward and one backward, 0.48 and 0.40. What surrounds the products costs an RTX 30
# about as much of their time (docs/speed.md). Where a card has measured it, that counts
INT8_SHARE = 0.45
# Our own backward that adds in a fixed order, 347 TFLOP/s with large tiles and 260 with small ones, on that H200 too.
LARGE_TILES_SHARE, SMALL_TILES_SHARE = 0.44, 0.33
LARGE_TILES = ((8, 0), (9, 0), (10, 0), (10, 3))  # compute capabilities with the shared memory for them
# Pascal, Volta and Turing, whatever follows the number
TOO_OLD = frozenset({"p40", "p100", "v100", "t4", "2060", "2070", "2080"})
LEAST_GUESS = 0.1  # of a card: the smallest MIG slice has a seventh


class Card(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row of cards.toml."""

    name: str
    nvml: list[str]
    capability: tuple[int, int]
    vram: float  # GiB
    bf16: float  # TFLOP/s, dense
    fp8: float = 0.0
    int8: float
    memory: float  # GB/s
    copy: float  # GB/s
    sustained: float


@cache
def load_cards() -> list[Card]:
    """All cards of the table. One that does not parse is a bug: msgspec.ValidationError passes through."""
    return msgspec.convert(tomllib.loads(CARDS.read_text("utf-8"))["cards"], list[Card])


def find_card(text: str) -> Card:
    """The card that a user means: `4090`, `rtx 4090`, `RTX5070Ti`, `NVIDIA GeForce RTX 4090`, `3090 24gb`, `a100 80gb`.
    All its words, no fewer: a 5070 is no 5070 Ti. Its memory may be said too. Raises UserError."""
    wanted = _words(text)
    names = {card.name: card for card in load_cards()}
    exact = [
        c
        for c in names.values()
        if any(wanted in (_words(n), _words(n) | {f"{c.vram:.0f}gb"}) for n in (c.name, *c.nvml))
    ]
    if len(exact) == 1:
        return exact[0]
    near = [c.name for c in exact or names.values() if wanted and wanted <= _words(c.name)]
    if len(near) > 1:
        raise UserError(f"{text!r} may be {' or '.join(near)}", where="--gpu", fix="Name one of them")
    if old := wanted & TOO_OLD:
        raise UserError(
            f"{text!r} is too old ({min(old)}): it has no bf16, which begins with compute capability 8.0",
            where="--gpu",
            fix="Name a card of the RTX 30 series or newer",
        )
    short, typed = {_squeezed(name): name for name in names}, _squeezed(text)
    like = [s for s in short if typed and s.startswith(typed)] + difflib.get_close_matches(
        typed, list(short), n=3, cutoff=0.6
    )
    close = near or [short[s] for s in dict.fromkeys(like)][:3]
    guess = f". Did you mean {' or '.join(close)}?" if close else ""
    raise UserError(
        f"no card called {text!r} is known{guess}",
        where="--gpu",
        fix=f"These are known: {', '.join(names)}. For another give its memory with --vram",
    )


def _squeezed(name: str) -> str:
    return name.lower().removeprefix("rtx").replace(" ", "")


def nearest_card(vram: int, *, float8: bool = False) -> Card:
    """The slowest of the known cards whose memory is nearest to `vram` bytes: what a bare amount of memory is taken
    for. `float8`: of those that multiply in it."""
    return min((c for c in load_cards() if c.fp8 or not float8), key=lambda c: (abs(c.vram * GIB - vram), c.bf16))


def _words(text: str) -> frozenset[str]:
    """A card's name without what all share: `NVIDIA GeForce RTX 4060 Ti 16 GB`, `RTX4060Ti-16GB` -> {4060, ti,
    16gb}."""
    apart = re.sub(r"(?<=\d{4})(?=(ti|super))|(?<=ti)(?=super)|(?<=\brtx)(?=\d)", " ", text.lower())
    words = re.sub(r"(?<=\d) *(gb|gib)\b", "gb", apart.replace("-", " ")).split()
    return frozenset(w for w in words if w not in ("nvidia", "geforce", "rtx", "tesla"))


def card_hardware(card: Card, *, ram: int, vram: int | None = None) -> Hardware:
    """A known card in a machine of `ram` bytes, nothing else running. `vram` replaces the card's own memory."""
    total = int(card.vram * GIB) if vram is None else vram
    bf16, fp8 = card.bf16 * card.sustained, card.fp8 * card.sustained * FLOAT8_SHARE
    deterministic = bf16 * (LARGE_TILES_SHARE if card.capability in LARGE_TILES else SMALL_TILES_SHARE)
    return Hardware(
        name=card.name,
        capability=card.capability,
        vram_total=total,
        vram_free=total - DRIVER_BYTES,
        ram_total=ram,
        ram_free=ram,
        copy_gbps=card.copy,
        bf16_tflops=bf16,
        fp8_tflops=fp8,
        int8_tops=card.int8 * card.sustained * INT8_SHARE,
        attention_forward_tflops=bf16 * FORWARD_SHARE,
        attention_backward_tflops=bf16 * BACKWARD_SHARE,
        deterministic_forward_tflops=bf16 * FORWARD_SHARE,
        deterministic_backward_tflops=deterministic,
        memory_gbps=card.memory * MEMORY_SHARE,
        source=f"the known rates of {card.name}",
    )


def gpu_hardware(gpu: Gpu, machine: Machine, *, rates: Rates | None = None, idle: bool = False) -> Hardware:
    """A GPU of this machine. Its rates are those given, else those measured here before, else the table's.

    `idle` reckons with all of the card's and the machine's memory, as it will be when nothing else runs: what a job in
    a queue will find. Otherwise with what is free now.
    """
    rates = rates or recall(gpu)
    free = gpu.vram_total - DRIVER_BYTES if idle else gpu.vram_free
    memory = {
        "vram_total": gpu.vram_total,
        "vram_free": free,
        "ram_total": machine.ram_total,
        "ram_free": machine.ram_total if idle else machine.ram_free,
    }
    lockable = 0 if machine.wsl else None
    known = _known(gpu, machine)
    if rates is not None:
        return Hardware(
            name=gpu.name,
            capability=gpu.capability,
            copy_gbps=rates.copy_gbps,
            bf16_tflops=rates.bf16_tflops,
            fp8_tflops=rates.fp8_tflops,
            int8_tops=known.int8_tops if rates.int8_tops is None else rates.int8_tops,
            memory_gbps=rates.memory_gbps,
            attention_forward_tflops=rates.attention.forward_tflops,
            attention_backward_tflops=rates.attention.backward_tflops,
            deterministic_forward_tflops=rates.deterministic_attention.forward_tflops,
            deterministic_backward_tflops=rates.deterministic_attention.backward_tflops,
            attention_kernels=rates.attention.kernels,
            deterministic_kernels=rates.deterministic_attention.kernels,
            source=f"measured on this machine{f' on {rates.date[:10]}' if rates.date else ''}",
            lockable=lockable,
            **memory,
        )
    return msgspec.structs.replace(known, name=gpu.name, capability=gpu.capability, lockable=lockable, **memory)


def _known(gpu: Gpu, machine: Machine) -> Hardware:
    """The table's rates of the card that comes nearest."""
    card, share = _like(gpu)
    known = card_hardware(card, ram=machine.ram_total)
    if share < 1:  # a slice, or a lesser sibling
        rates_of_it = (
            "bf16_tflops",
            "fp8_tflops",
            "int8_tops",
            "attention_forward_tflops",
            "attention_backward_tflops",
            "deterministic_forward_tflops",
            "deterministic_backward_tflops",
            "memory_gbps",
        )
        scaled = {f: getattr(known, f) * share for f in rates_of_it}
        return msgspec.structs.replace(known, **scaled, source=f"guessed from {card.name}, not measured here yet")
    return msgspec.structs.replace(known, source=f"{known.source}, not measured here yet")


def _like(gpu: Gpu) -> tuple[Card, float]:
    """(the table's card that comes nearest, how much of it this GPU is). Unknown cards are taken for the slowest of
    their kind."""
    name = gpu.name.removeprefix("NVIDIA ")
    for card in load_cards():
        if name in card.nvml:
            return card, 1.0
        if gpu.mig and name.partition(" MIG ")[0] in card.nvml:
            return card, max(LEAST_GUESS, min(1.0, gpu.vram_total / (card.vram * GIB)))
    kin = (
        [c for c in load_cards() if c.capability == gpu.capability]
        or [c for c in load_cards() if c.capability <= gpu.capability]
        or load_cards()
    )
    slowest = min(kin, key=lambda c: (abs(c.vram * GIB - gpu.vram_total), c.bf16))
    return slowest, 0.9

"""Which precision runs on which cards: one table for the planner, the rules and the docs.

`tests/engine/wan/test_older_cards.py` compiles what a precision runs through for each generation of cards.

Which of them a job gets is presets.planner.choose's.
"""

from presets.errors import UserError

Capability = tuple[int, int]

LEAST: Capability = (8, 0)  # bf16 and exact attention begin here
# quantization.transformer -> (the least compute capability, how its products are made)
TRANSFORMER: dict[str, tuple[Capability, str]] = {
    "auto": (
        LEAST,
        "int8 where the card is clearly faster in it, float8 where the card has it, and else bf16, or qint8, or qint4:"
        " the fastest that fits",
    ),
    "none": (LEAST, "stored and multiplied in bf16"),
    "float8": ((8, 9), "multiplied in 8 bits, which is what makes it fast"),
    "int8": (
        LEAST,
        "rotated, stored and multiplied in 8-bit integers, both ways: for cards without float8, or slow in it",
    ),
    "qfloat8": (LEAST, "stored in 8 bits, multiplied in bf16"),
    "qint8": (LEAST, "stored in 8 bits, multiplied in bf16"),
    "qint4": (LEAST, "stored in 4 bits, multiplied in bf16"),
    "qint4+ara": (LEAST, "as qint4, beside an adapter in bf16"),
}
TEXT_ENCODER: dict[str, tuple[Capability, str]] = {
    "none": (LEAST, "stored and multiplied in bf16"),
    "float8": (LEAST, "stored in 8 bits, multiplied in bf16"),
    "qint8": (LEAST, "stored in 8 bits, multiplied in bf16"),
}
CARDS: dict[Capability, str] = {
    LEAST: "RTX 30 series, A100, RTX A2000 to A6000, A10, A40, and all newer ones",
    (8, 9): "RTX 40 and 50 series, RTX 4000 to 6000 Ada, RTX PRO 6000, L4, L40S, H100, H200, B200",
}


def text(capability: Capability) -> str:
    return ".".join(map(str, capability))


def require(
    precision: str, *, card: str, capability: Capability, multiplies_float8: bool, multiplies_int8: bool
) -> None:
    """Raises UserError where a card does not run a precision of the transformer. `multiplies_float8` and
    `multiplies_int8`: it was seen to, or is known to."""
    least, _ = TRANSFORMER[precision]
    if capability < least:
        what = (
            f"{precision} needs compute capability {text(least)} or newer ({CARDS[least]}), and {card} has"
            f" {text(capability)}"
        )
    elif precision == "float8" and not multiplies_float8:
        what = f"{precision} needs 8-bit products, and this torch has none for {card}"
    elif precision == "int8" and not multiplies_int8:
        what = f"{precision} needs products of 8-bit integers, and their kernels did not run on {card}"
    else:
        return
    same_size = "qint8" if precision == "int8" else "qfloat8"
    if capability < LEAST:
        fix = f"Use a card of compute capability {text(LEAST)} or newer: older ones run no precision"
    else:
        fix = f'Set quantization.transformer = "auto", or "{same_size}" for weights of the same size'
    raise UserError(what, where="quantization.transformer", fix=fix)

"""How many pieces a tokenizer knows: from tokenizer.json, or from a SentencePiece model. No tokenizer is loaded."""

from pathlib import Path

import msgspec
from msgspec import Struct

from presets.base.comfy_files import TOKENIZER
from presets.base.safetensors_header import Damaged, read_header

PIECE = 0x0A  # tag of field 1, length-delimited: a piece of sentencepiece's ModelProto


class _Token(Struct):
    id: int


class _Model(Struct):
    vocab: list[msgspec.Raw] | dict[str, int]


class _Tokenizer(Struct):
    model: _Model
    added_tokens: list[_Token] = []


def vocabulary_size(place: Path) -> int | None:
    """Of the tokenizer in a folder, or inside ComfyUI's file of the text encoder; None where it is not known."""
    try:
        if place.is_file():
            found = read_header(place)[TOKENIZER]
            with place.open("rb") as f:
                f.seek(found.begin)
                return _pieces(f.read(found.size))
        if (file := place / "tokenizer.json").exists():
            tokenizer = msgspec.json.decode(file.read_bytes(), type=_Tokenizer)
            return (
                max(len(tokenizer.model.vocab), *(t.id + 1 for t in tokenizer.added_tokens))
                if tokenizer.added_tokens
                else len(tokenizer.model.vocab)
            )
        return _pieces((place / "spiece.model").read_bytes())
    except (
        OSError,
        Damaged,
        KeyError,
        IndexError,
        RecursionError,
        msgspec.MsgspecError,
    ):  # loading it says what is wrong
        return None


def _pieces(content: bytes) -> int | None:
    """Fields of type "piece" at the top of a SentencePiece model; None when it is no such model."""
    count, at = 0, 0
    while at < len(content):
        tag, at = _varint(content, at)
        if tag & 7 != 2:
            return None if count == 0 else count
        length, at = _varint(content, at)
        count += tag == PIECE
        at += length
    return count or None


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def mismatch(pieces: int, rows: int, *, most_spare: int = 1024) -> str:
    """Why a tokenizer of so many pieces does not belong to an encoder with so many rows; "" where it does. Tables are
    padded by some rows (UMT5: 84)."""
    if pieces > rows:
        return f"its tokenizer knows {pieces:,} pieces, and the encoder has rows for {rows:,}"
    if rows - pieces > most_spare:
        return f"its tokenizer knows {pieces:,} pieces only, and the encoder has rows for {rows:,}"
    return ""

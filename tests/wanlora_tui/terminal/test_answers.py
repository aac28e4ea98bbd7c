"""Keys and answers taken apart, however they come: whole, in pieces, one in another, broken off."""

import pytest
from textual._ansi_sequences import ANSI_SEQUENCES_KEYS

from wanlora_tui.terminal.answers import ANSWER_SECONDS, KEY_SECONDS, LONGEST, TerminalInput

ANSWERS = {
    "attributes": "\x1b[?62;4;22c",
    "attributes without numbers": "\x1b[?c",
    "attributes of a VT525": "\x1b[?65;1;2;3;4;6;8;9;15;16;17;18;21;22;28;29;39;42;44c",
    "attributes without their mark": "\x1b[62;4c",
    "secondary attributes": "\x1b[>41;380;0c",
    "tertiary attributes": "\x1bP!|00000000\x1b\\",
    "cell": "\x1b[6;20;10t",
    "cell without numbers": "\x1b[6;t",
    "cell, cut": "\x1b[6;20t",
    "no numbers at all": "\x1b[t",
    "window": "\x1b[4;480;800t",
    "title": "\x1b]ltitle\x1b\\",
    "kitty yes": "\x1b_Gi=31;OK\x1b\\",
    "kitty no": "\x1b_Gi=31;EINVAL:the image's data is not what it should be\x1b\\",
    "kitty keyboard": "\x1b[?25u",
    "status": "\x1b[0n",
    "cursor with page": "\x1b[?1;1;1R",
    "mode": "\x1b[4;1$y",
    "terminal's name": "\x1bP>|XTerm(380)\x1b\\",
    "sixel colours": "\x1b[?1;0;256S",
    "background": "\x1b]11;rgb:1e1e/1e1e/1e1e\x07",
    "parameters": "\x1b[2;1;1;128;128;1;0x",
    "a window of no size": "\x1b[48;0;0;0;0t",
}
KEYS = {
    "text": "n/clips/ü日本",
    "enter": "\r",
    "up": "\x1b[A",
    "shift+tab": "\x1b[Z",
    "f5": "\x1b[15~",
    "F1 of a Linux console": "\x1b[[A",
    "f1": "\x1bOP",
    "alt+f": "\x1bf",
    "ctrl+up": "\x1b[1;5A",
    "kitty's ctrl+a": "\x1b[97;5u",
    "alt+underscore, then a": "\x1b_a",
    "alt+P, then a": "\x1bPa",
    "mouse": "\x1b[<35;40;12M",
    "mouse, old form": "\x1b[M !!",
    "mouse, urxvt": "\x1b[32;40;12M",
    "focus": "\x1b[I",
    "cursor": "\x1b[12;40R",
    "synchronized output": "\x1b[?2026;2$y",
    "window in band": "\x1b[48;24;80;480;800t",
    "paste": "\x1b[200~a\x1b[?1cb\x1b]\x1b[201~",
}


@pytest.mark.parametrize("pieces", [1, 2, 100])
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_is_no_key_even_in_pieces_between_keys(answer: str, pieces: int):
    source, out = TerminalInput(), ""
    text = f"a{answer}b\x1b[A"
    for i in range(0, len(text), -(-len(text) // pieces)):
        out += source.feed(text[i : i + -(-len(text) // pieces)], now=i * 0.05)
        out += source.expire(i * 0.05 + 0.04)
    assert out == "ab\x1b[A"
    assert source.answers == ([] if "48;0" in answer else [answer])


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
def test_keys_go_on_as_they_came(keys: str):
    whole, pieces = TerminalInput(), TerminalInput()
    assert whole.feed(keys, 0) == keys
    assert "".join(pieces.feed(c, i * 0.05) for i, c in enumerate(keys)) == keys
    assert not whole.answers and not pieces.answers and whole.due is None


def test_every_key_that_textual_knows_goes_on():
    lost = [
        keys
        for keys in ANSI_SEQUENCES_KEYS
        if TerminalInput().feed(keys + "q", 0) != keys + "q" and keys not in ("\x1b[200~", "\x1b[201~")
    ]
    assert not lost


def test_an_answer_in_an_answer_and_a_key_in_an_answer():
    source = TerminalInput()
    assert source.feed("\x1b[?62;\x1b[6;20;10t", 0) == ""  # the first was cut off
    assert source.feed("\x1b_Gi=31\x1b[A", 0) == "\x1b[A"
    assert source.feed("\x1b[6;20\rq", 0) == "\rq"
    assert source.answers == ["\x1b[6;20;10t"]


@pytest.mark.parametrize("key", ["\x1b", "\x1b[", "\x1b_", "\x1bP", "\x1b]"])
def test_a_key_that_an_answer_might_begin_with_waits_no_longer_than_textual_does(key: str):
    source = TerminalInput()
    assert source.feed(key, now=5.0) == "" and source.due == 5.0 + KEY_SECONDS
    assert source.expire(5.0 + KEY_SECONDS / 2) == ""
    assert source.expire(5.0 + KEY_SECONDS) == key and source.due is None
    assert source.feed("q", 6.0) == "q"


@pytest.mark.parametrize("cut", ["\x1b[6;20", "\x1b[?62;4", "\x1b_Gi=31;O", "\x1b]11;rgb:", "\x1bP>|XT"])
def test_an_answer_that_never_ends_is_dropped(cut: str):
    source = TerminalInput()
    assert source.feed(cut, now=1.0) == ""
    assert source.expire(1.0 + KEY_SECONDS) == "" and source.due == 1.0 + ANSWER_SECONDS
    assert source.expire(1.0 + ANSWER_SECONDS) == "" and source.due is None
    assert source.feed("q", 9.0) == "q"


def test_a_string_without_end_takes_no_memory_for_ever():
    source = TerminalInput()
    source.feed("\x1b_G" + "a" * LONGEST, 0)
    assert source.feed("q", 0) == "q"


def test_textual_divides_by_no_zero():
    assert TerminalInput().feed("\x1b[48;24;80;0;0t", 0) == "\x1b[48;24;80;24;80t"

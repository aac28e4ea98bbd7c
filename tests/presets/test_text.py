"""Texts put together from parts."""

import io
import re
import shlex
import sys
import unicodedata

import msgspec
import pytest

from presets.errors import UserError
from presets.text import (
    escape_output,
    escaped,
    escaped_json,
    human,
    loss_text,
    make_writable,
    sentences,
    to_type,
    write_over,
)
from tests.helpers import ROOT
from wanlora_tui.cli import parser


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (("ImportError: no name x", "This is a bug"), "ImportError: no name x. This is a bug."),
        (
            ("the folder /nonexist does not exist", "Choose the folder that holds the clips"),
            "the folder /nonexist does not exist. Choose the folder that holds the clips.",
        ),
        (("out of memory.", "Lower num_frames."), "out of memory. Lower num_frames."),
        (("is the disk full?", "", "  Look! "), "is the disk full? Look!"),
        (('it said "no."', "Ask again (now)"), 'it said "no." Ask again (now).'),
        (
            ("no daemon is running", "Start it with: wanlora daemon start"),
            "no daemon is running. Start it with: wanlora daemon start",
        ),
        (("Start it with: wanlora daemon start", "Then look"), "Start it with: wanlora daemon start. Then look."),
        (("one", "one"), "one. one."),
        (("", " "), ""),
    ],
)
def test_every_part_is_a_sentence(parts: tuple[str, ...], text: str):
    assert sentences(*parts) == text


def test_an_error_has_one_full_stop_before_its_fix():
    assert str(UserError("is no video.", where="a.mp4", fix="Leave it out")) == "a.mp4: is no video. Leave it out"
    assert str(UserError("is no video", fix="Leave it out")) == "is no video. Leave it out"
    assert str(UserError("is no video", where="a.mp4")) == "a.mp4: is no video"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (12.4 * 1024, "12 KiB"),
        (1.5 * 2**20, "1.5 MiB"),
        (310.4 * 2**20, "310 MiB"),
        (1.84 * 2**30, "1.8 GiB"),
        (139.8 * 2**30, "140 GiB"),
        (3.25 * 2**40, "3.2 TiB"),
        (2000 * 2**40, "2000 TiB"),
    ],
)
def test_bytes_for_a_person(size: float, text: str):
    assert human(size) == text


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        ("✓ done · 3 → 4 …", "ascii", b"+ done - 3 > 4 ."),
        ("✗ café", "latin-1", b"x caf\xe9"),
        ("Ünïcode 日本", "ascii", b"Unicode ??"),
        ("caf\udce9", "ascii", b"caf\xe9"),
        ("✓", "utf-8", "✓".encode()),
    ],
)
def test_what_an_encoding_lacks_has_a_plain_sign(text: str, encoding: str, shown: bytes):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    make_writable(stream)
    stream.write(text)
    stream.flush()
    assert raw.getvalue() == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]52;c;UFdORUQ=\x07", r"\x1b]52;c;UFdORUQ=\x07"),
        ("a\x08b\rc\x7fd\x9b31me", r"a\x08b\x0dc\x7fd\x9b31me"),
        ("\u202egnp.exe\u202c \u2066x\u2069 \u2028\u2029\x85", r"\u202egnp.exe\u202c \u2066x\u2069 \u2028\u2029\x85"),
        ("caf\udce9 \udc9b \ud83d", r"caf\xe9 \x9b \ud83d"),
        (
            "a\tb\nÜnï 日本 👩‍👧 עברית",
            "a\tb\nÜnï 日本 👩‍👧 עברית",
        ),  # a joiner in an emoji, and letters that run to the left
    ],
)
def test_what_a_terminal_would_act_on_is_written_out(text: str, shown: str):
    assert escaped(text) == shown
    assert escaped(shown) == shown


def test_every_control_character_is_written_out():
    acted_on = [
        chr(c)
        for c in range(sys.maxunicode + 1)
        if unicodedata.category(chr(c)) in ("Cc", "Zl", "Zp", "Cs")
        or unicodedata.bidirectional(chr(c)) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    ]
    assert [c for c in acted_on if escaped(c) == c] == ["\t", "\n"]


def test_json_stays_json():
    value = {"a\x7f": "\x1b[2J \x9b2J \u202e \u2028 é \n"}
    data = escaped_json(msgspec.json.encode(value))
    assert msgspec.json.decode(data) == value
    assert escaped(data.decode()) == data.decode() and "é" in data.decode()


OURS_ALONE = {
    "daemon/events/read_ahead.py",  # messages to the daemon
    "daemon/protocol_page.py",
    "engine/demo/learned.py",  # numbers
    "engine/memory/measure_link.py",  # a number
    "engine/toy_base/train.py",
    "presets/machine/torch_build.py",
    "presets/rules/docs.py",
    "wanlora_tui/remote/askpass.py",  # to ssh and through its words, which are shown escaped
    "wanlora_tui/remote/death_signal.py",  # it becomes ssh, whose path is ours
}


def test_every_program_has_the_gate():
    """But those that print nothing but what is ours."""
    programs = {
        str(path.relative_to(ROOT)): path.read_text("utf-8")
        for floor in ("presets", "engine", "daemon", "wanlora_tui")
        for path in (ROOT / floor).rglob("*.py")
    }
    programs = {name: text for name, text in programs.items() if '__name__ == "__main__"' in text}
    assert len(programs) > 8
    without = {name for name, text in programs.items() if "escape_output()" not in text}
    assert without == OURS_ALONE


def test_the_gate_lets_through_what_is_ours_and_nothing_else(monkeypatch: pytest.MonkeyPatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="utf-8"))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    monkeypatch.setenv("PYTHON_COLORS", "1")
    escape_output()
    escape_output()  # twice is once
    print("one\x1b[31m", "two\x9b", sep="\t")
    sys.stdout.writelines(["three\r\n"])
    write_over("four\x07", sys.stdout)
    sys.stdout.flush()
    assert raw.getvalue() == b"one\\x1b[31m\ttwo\\x9b\nthree\\x0d\n\r\x1b[2Kfour\\x07"


# --- commands to type ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operand", ["orbit", "-x", "--json", "a b", "it's", "$HOME", "my jobs/*.toml", "é;reboot"])
def test_a_command_that_is_advised_is_taken_by_a_shell_and_by_wanlora_as_it_was_meant(operand: str):
    words = shlex.split(to_type("resume", operand, "--from 5"))
    assert words[0] == "wanlora"
    args = parser().parse_args(words[1:])
    assert args.job == operand and args.from_step == 5


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (0.0, "0.0000"),
        (0.12344, "0.1234"),
        (-0.5, "-0.5000"),
        (0.001, "0.0010"),
        (5.31e-5, "5.31e-5"),
        (99_999.5, "99999.5000"),
        (8.247e31, "8.25e31"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
    ],
)
def test_a_loss_of_any_size_is_read_at_a_glance(loss: float, text: str):
    assert loss_text(loss) == text


def test_every_loss_is_written_by_one_function():
    """Nothing else has four places."""
    found = [
        str(path.relative_to(ROOT))
        for floor in ("presets", "engine", "daemon", "wanlora_tui")
        for path in (ROOT / floor).rglob("*.py")
        for line in path.read_text().splitlines()
        if ":.4f}" in line
    ]
    assert found == ["presets/text.py"]


def test_a_command_without_an_operand():
    assert to_type("watch", "") == "wanlora watch" and to_type("watch", "", "--plain") == "wanlora watch --plain"


def test_every_command_that_is_advised_of_a_job_or_a_file_is_made_so():
    bare = re.compile(r"wanlora [a-z]+ (?:--[a-z-]+ )*\{(?!to_type)")
    allowed = {  # a host, an address, titles of a picture and of a screen, a list that is quoted where it is made
        "daemon/wire/find.py": 1,
        "wanlora_tui/commands/keys.py": 1,
        "wanlora_tui/screenshot.py": 1,
        "wanlora_tui/screens/jobs/screen.py": 1,
        "wanlora_tui/commands/jobs/wait.py": 1,
    }
    found = {}
    for floor in ("presets", "daemon", "engine", "wanlora_tui"):
        for path in (ROOT / floor).rglob("*.py"):
            for line in path.read_text().splitlines():
                if bare.search(line) and "f" in line.partition("wanlora")[0]:
                    name = str(path.relative_to(ROOT))
                    found[name] = found.get(name, 0) + 1
    assert found == allowed

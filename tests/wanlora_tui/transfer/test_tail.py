"""Following what a trainer writes: bounded, over rotation, and over progress bars."""

from pathlib import Path

import pytest

from presets.errors import UserError
from wanlora_tui.transfer.here import HereFiles
from wanlora_tui.transfer.tail import FIRST, LONGEST, MOST, TextTail, attempt_log


@pytest.fixture
def tail() -> TextTail:
    return TextTail(HereFiles())


def test_it_gives_whole_lines_and_then_what_came_since(tail: TextTail, tmp_path: Path):
    file = tmp_path / "attempt_1.log"
    assert tail.read(str(file)) == ([], True)
    file.write_text("one\ntwo\nthr")
    assert tail.read(str(file)) == (["one", "two"], True)
    with file.open("a") as f:
        f.write("ee\nfour\n")
    assert tail.read(str(file)) == (["three", "four"], False)
    assert tail.read(str(file)) == ([], False)


def test_of_a_long_file_the_end_alone_is_read(tail: TextTail, tmp_path: Path):
    file = tmp_path / "a.log"
    file.write_text("".join(f"line {i}\n" for i in range(100_000)))
    lines, anew = tail.read(str(file))
    assert anew and lines[-1] == "line 99999" and sum(len(line) + 1 for line in lines) <= FIRST
    assert all(line.startswith("line ") for line in lines)  # the first is not half a line
    with file.open("a") as f:
        f.write("x" * 100 + "\n")
        f.write("".join(f"more {i}\n" for i in range(MOST // 8)))
    lines, anew = tail.read(str(file))
    assert anew and lines[-1] == f"more {MOST // 8 - 1}"


def test_a_shorter_file_and_another_attempt_begin_anew(tail: TextTail, tmp_path: Path):
    first, second = tmp_path / "attempt_1.log", tmp_path / "attempt_2.log"
    first.write_text("a\nb\n")
    second.write_text("c\n")
    tail.read(str(first))
    first.write_text("z\n")
    assert tail.read(str(first)) == (["z"], True)
    assert tail.read(str(second)) == (["c"], True)


def test_of_a_progress_bar_the_last_state_is_shown_and_no_line_is_endless(tail: TextTail, tmp_path: Path):
    file = tmp_path / "a.log"
    file.write_bytes(b"10%\r50%\r100%\ncrlf\r\n\xff\xfe\n" + b"y" * 9000 + b"\n")
    lines, _ = tail.read(str(file))
    assert lines[:2] == ["100%", "crlf"] and "\ufffd" in lines[2]
    assert len(lines[3]) < LONGEST + 3


def test_what_is_no_file_is_refused(tail: TextTail, tmp_path: Path):
    with pytest.raises(UserError):
        tail.read(str(tmp_path))


def test_each_attempt_has_a_log_of_its_own():
    assert attempt_log("/runs/orbit", 3) == "/runs/orbit/logs/attempt_3.log"

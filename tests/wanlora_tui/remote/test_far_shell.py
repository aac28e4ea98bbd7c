import shutil
import subprocess

import pytest

from wanlora_tui.remote.far_shell import after_mark, for_any_shell, harmless, last_line, marked, new_mark, running

HARD = [
    *("it's", 'a "b"', "$HOME `id` $(id)", "back\\slash \\n \\0101", "!x !!"),
    *("é 日本", "a\nb", "*?[x]{a,b}~", "%s %%", ""),
]
SHELLS = [s for s in ("sh", "dash", "bash", "zsh", "ksh", "fish", "csh", "tcsh") if shutil.which(s)]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.process
def test_every_shell_hands_a_script_on_as_it_is(shell: str):
    said = subprocess.run(
        [shell, "-c", for_any_shell(running(["printf", "%s\\0", *HARD]))], capture_output=True, check=True
    )
    assert said.stdout.decode().split("\0")[:-1] == HARD and said.stderr == b""


def test_the_line_holds_nothing_that_shells_take_differently():
    """csh ends a quoted word at a line end and expands ! in it; fish has an escape for \\' and \\\\."""
    line = for_any_shell(running(["printf", "%s\\0", *HARD]))
    inner = line.removeprefix("exec /bin/sh -c '").removesuffix("'")
    assert line.isascii() and not set(inner) & set("'!\n") and "\\\\" not in inner


@pytest.mark.process
def test_what_start_files_print_stands_before_the_mark():
    mark = new_mark()
    script = marked(running(["sh", "-c", "echo out; echo err >&2"]), mark)
    said = subprocess.run(["sh", "-c", f"printf noise; {script}"], capture_output=True, text=True, check=True)
    assert after_mark(said.stdout, mark) == "out\n" and after_mark(said.stderr, mark) == "err\n"
    assert after_mark("no mark", mark) == "no mark"


def test_foreign_words_hold_no_control_characters():
    assert harmless("a\x1b]52;c;eA==\x07b\r\n\tc\x9bd") == "a]52;c;eA==b\n\tcd"
    assert last_line("one\n\x1b[2Jtwo\r\n\n") == "[2Jtwo" and last_line(" \n") == ""

"""Commands that are advised and paths that are shown, of a machine that is elsewhere."""

import pytest

from wanlora_tui.output.far_words import advised, is_away, shown_path, speaking_of

NAMES = ("resume", "attach", "watch", "daemon", "stop", "jobs")


@pytest.mark.parametrize(
    ("said", "becomes"),
    [
        ("Resume it later with: wanlora resume a", "Resume it later with: wanlora --host me@box resume a"),
        ("come back with: wanlora attach a, or stop it with: wanlora stop a",
         "come back with: wanlora --host me@box attach a, or stop it with: wanlora --host me@box stop a"),
        ("Start it with `wanlora daemon start`: so", "Start it with `wanlora --host me@box daemon start`: so"),
        ("Come back with: wanlora", "Come back with: wanlora --host me@box"),
        ("Come back with: wanlora attach a --host me@box", None),
        ("Install the same version of wanlora on both", None),
        ("Try: ssh me@box wanlora daemon status", None),
        ("wanlora keeps jobs", None),
    ],
)  # fmt: skip
def test_a_command_gets_its_host(said: str, becomes: str | None):
    with speaking_of("me@box", NAMES):
        assert advised(said) == (becomes or said)
        assert is_away() and shown_path("/runs/a") == "me@box:/runs/a"
    assert advised(said) == said and not is_away()


def test_a_machine_that_is_called_by_a_name_from_elsewhere_is_still_this_one():
    with speaking_of("box", NAMES, is_away=False):
        assert advised("wanlora jobs") == "wanlora --host box jobs" and not is_away()

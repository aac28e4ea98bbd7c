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


@pytest.mark.parametrize(
    ("said", "becomes"),
    [
        ("Resume it later with: wanlora resume a", "Resume it later with: wanlora --dir '/my jobs' resume a"),
        ("Start it: wanlora daemon start", "Start it: wanlora --dir '/my jobs' daemon start"),
        ("Come back with: wanlora", "Come back with: wanlora --dir '/my jobs'"),
        ("Look at it with: wanlora check a.toml", None),
        ("Hand it in: wanlora submit a.toml --dir /other", None),
        ("Try: wanlora resume a --dir /other, or wanlora stop a",
         "Try: wanlora resume a --dir /other, or wanlora --dir '/my jobs' stop a"),
    ],
)  # fmt: skip
def test_a_command_that_talks_to_the_daemon_gets_its_folder(said: str, becomes: str | None):
    commands = (*NAMES, "submit", "check")
    with speaking_of("", commands, daemon={"--dir": "/my jobs"}, of_daemon=(*NAMES, "submit")):
        assert advised(said) == (becomes or said)
        assert not is_away() and shown_path("/runs/a") == "/runs/a"


def test_options_that_are_named_are_not_named_again():
    with speaking_of("box", NAMES, daemon={"--dir": "/d", "--connect": "tcp://a:1"}, of_daemon=NAMES):
        assert advised("Try: wanlora stop a --host box") == (
            "Try: wanlora --dir /d --connect tcp://a:1 stop a --host box"
        )
        assert advised("wanlora jobs") == "wanlora --host box --dir /d --connect tcp://a:1 jobs"

"""The registry of actions as a whole: what a key means on one screen and on another."""

import re
from collections import defaultdict

from wanlora_tui.actions import Action, all_actions
from wanlora_tui.screens.help import key_text

# a question of its own, with its keys on its buttons: `y` and `n` are what everybody expects there
QUESTIONS = "confirm"


def group(action: Action) -> str:
    return action.id.partition(".")[0]


def double_meanings(actions: list[Action]) -> list[str]:
    """Keys that do something costly on one screen and something else on another, or twice on the same."""
    meanings: dict[str, list[Action]] = defaultdict(list)
    for action in actions:
        if group(action) != QUESTIONS:
            for key in action.keys.split(","):
                meanings[key].append(action)
    return [
        f"{key}: {costly.id} ({costly.label}), {other.id} ({other.label})"
        for key, found in meanings.items()
        for costly in found
        for other in found
        if costly.costs and other.label != costly.label
    ]


def test_a_key_that_costs_something_means_the_same_everywhere():
    assert double_meanings(all_actions()) == []


def test_what_acts_on_jobs_runs_or_files_is_flagged():
    costly = {action.id for action in all_actions() if action.costs}
    assert costly >= {
        "jobs.stop",
        "jobs.resume",
        "jobs.cancel",
        "jobs.hold",
        "jobs.earlier",
        "jobs.later",
        "jobs.remove",
        "jobs.remove_ended",
        "dashboard.stop",
        "dashboard.resume",
        "dashboard.change",
        "dashboard.save",
        "dashboard.sample",
        "dashboard.checkpoints",
        "dashboard.fetch",
    }


def test_the_search_finds_a_double_meaning():
    stop = Action(id="a.stop", keys="s", action="stop", label="Stop", help=".", costs=True)
    assert double_meanings([stop, Action(id="b.sort", keys="o,s", action="sort", label="Sort", help=".")])
    assert not double_meanings([stop, Action(id="b.stop", keys="s", action="stop", label="Stop", help=".")])


def test_no_screen_has_a_key_twice():
    for name in ("jobs", "dashboard", "compare", "log", "sheet", "picker", "caption"):
        keys = [key for action in all_actions() if group(action) in (name, "app") for key in action.keys.split(",")]
        assert len(keys) == len(set(keys)), name


def test_the_key_that_is_shown_is_none_that_a_browser_or_desktop_takes():
    for action in all_actions():
        first = action.keys.split(",")[0]
        assert not re.fullmatch(r"f\d+", first), f"{action.id} is shown as {first}"


def test_what_has_a_function_key_has_one_that_works_in_a_text_too():
    no_text = {"drafts.discard"}
    for action in all_actions():
        keys = action.keys.split(",")
        if any(re.fullmatch(r"f\d+", key) for key in keys) and action.id not in no_text:
            assert any(key.startswith("ctrl+") for key in keys), f"{action.id} has only {keys}"


def test_every_action_has_a_key_that_no_browser_or_editor_takes_from_its_terminal():
    """A sign, or one of those that no terminal can do without: ^F is a browser's search, ^L its address, ^R loads
    its page again. In a text a sign is typed, so the one with Ctrl stays beside it."""
    plain = {"enter", "escape", "tab", "space", "backspace", "home", "end", "pageup", "pagedown"}
    plain |= {"up", "down", "left", "right", "ctrl+c", "ctrl+z"}  # ^C and ^Z mean what they do in a shell
    texts = {"caption.write"}  # the whole dialog is a text, and a button does the same
    for action in all_actions():
        keys = action.keys.split(",")
        alike = [key for key in keys if key in plain or not re.search(r"\+|^f\d+$", key)]
        assert alike or action.id in texts, f"{action.id} has only {keys}"


def test_every_action_says_what_it_does_in_a_sentence():
    assert [a.id for a in all_actions() if not (a.label and a.help[:1].isupper() and a.help.endswith("."))] == []


def test_help_names_every_key_as_it_stands_on_a_keyboard():
    """Not by Textual's name of it, as `pagedown`."""
    raw = {(a.id, key) for a in all_actions() for key in key_text(a.keys).split() if re.match("[a-z]{2}", key)}
    assert not raw

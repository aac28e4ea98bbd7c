"""The table of previews that a run's events add up to."""

from pathlib import Path

from presets.runs.run_view import Abandoned, PreviewSet, RunView
from wanlora_tui.film.shots import Column, Shots


def sample(step: int, i: int, prompt: str = "") -> PreviewSet:
    name = f"samples/step_{step:09d}/{i:02d}"
    return PreviewSet(step, f"{name}.mp4", f"{name}.png", prompt or f"prompt {i}", 42 + i)


def test_a_row_for_each_prompt_and_a_column_for_each_step():
    view = RunView(samples=[sample(s, i) for s in (100, 0) for i in (0, 2)])  # the second cannot be made
    shots = Shots(view, Path("/run"))
    assert shots.columns == [Column(0), Column(100)] and shots.prompts == 3
    shot = shots.get(2, Column(100))
    assert shot is not None and shot.film == Path("/run/samples/step_000000100/02.mp4") and shot.seed == 44
    assert shots.get(1, Column(100)) is None and shots.text(1) == ""
    assert shots.newest == (2, Column(100))


def test_the_text_of_a_prompt_is_that_of_its_newest_preview():
    view = RunView(samples=[sample(0, 0, "old words"), sample(50, 0, "new words")])
    assert Shots(view, Path("/run")).text(0) == "new words"


def test_branches_that_were_left_stand_beside_what_is_kept():
    left = [
        Abandoned(1, 50, 100, "abandoned/attempt_1", samples=[sample(100, 0, "then")]),
        Abandoned(2, 50, 70, "", samples=[sample(60, 0)]),  # a plain resume: its files were made anew
    ]
    view = RunView(samples=[sample(50, 0), sample(100, 0, "now")], abandoned=left)
    shots = Shots(view, Path("/run"))
    assert [c.label for c in shots.columns] == ["step 50", "step 100", "step 100 ~1 abandoned"]
    shot = shots.get(0, Column(100, 1))
    assert shot is not None and shot.prompt == "then"
    assert shot.film == Path("/run/abandoned/attempt_1/samples/step_000000100/00.mp4")
    assert shots.text(0) == "now" and shots.newest == (0, Column(100))


def test_no_preview_yet():
    shots = Shots(RunView(), Path("/run"))
    assert shots.columns == [] and shots.prompts == 0 and shots.newest is None

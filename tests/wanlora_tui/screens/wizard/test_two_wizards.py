"""Several wizards at once, each a program on a terminal of its own."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.interface.harness import environment, until
from tests.helpers.interface.wizard_pilot import make_clips
from tests.helpers.terminal import Terminal
from wanlora_tui.draft.draft_store import Draft, DraftStore

Open = Callable[[], Terminal]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    for name in ("orbit", "neon", "face"):
        make_clips(tmp_path / name, 1, frames=9)
    return tmp_path


@pytest.fixture
def wizard(work: Path) -> Iterator[Open]:
    code = (
        "from pathlib import Path; from tests.helpers.interface.wizard_pilot import WizardApp;"
        f" WizardApp(Path({str(work / 'draft.json')!r})).run()"
    )
    opened: list[Terminal] = []

    def open_one() -> Terminal:
        opened.append(Terminal([sys.executable, "-c", code], size=(80, 24), cwd=work, env=environment()))
        return opened[-1]

    try:
        yield open_one
    finally:
        for one in opened:
            one.close()


def kept(work: Path, number: int = 1) -> Draft | None:
    return DraftStore(work / ("draft.json" if number == 1 else f"draft-{number}.json")).load()


def begin(terminal: Terminal, down: int, folder: str) -> None:
    """A fresh wizard: take a kind, then a folder."""
    terminal.wait("step 1 of 6")
    terminal.press(*["j"] * down, "enter")
    terminal.wait("step 2 of 6")
    terminal.press(folder, "enter")
    terminal.wait(f"{folder} 1 clip")


def test_neither_sees_nor_touches_the_other_ones_draft(work: Path, wizard: Open) -> None:
    one = wizard()
    begin(one, 0, "orbit")
    two = wizard()  # sees no offer: the draft there is in use
    begin(two, 1, "neon")
    assert [(d.kind, Path(d.folders[0]).name) for n in (1, 2) if (d := kept(work, n))] == [
        ("motion", "orbit"),
        ("style", "neon"),
    ]
    two.press("escape")
    two.wait("Leave the wizard?")
    two.press("right", "right", "enter")  # throw it away
    until(lambda: kept(work, 2) is None, "the end of the second draft")
    assert kept(work) is not None
    one.press("f8")
    one.wait("step 3 of 6")
    until(lambda: (d := kept(work)) and d.step == "captions", "the step in the draft")


def test_drafts_of_dead_wizards_are_listed_and_one_is_taken(work: Path, wizard: Open) -> None:
    wizards = {}
    for down, folder in enumerate(("orbit", "neon", "face")):
        wizards[folder] = wizard()
        begin(wizards[folder], down, folder)
    wizards["neon"].kill9()
    wizards["face"].kill9()
    again = wizard()
    again.wait("2 half-filled jobs: which one?")
    text = again.text
    assert text.index("wan_i2v_character_face") < text.index("wan_i2v_style_neon") and "orbit" not in text
    assert all(
        word in text
        for word in (
            "moments ago",
            "style · ",
            "/neon",
            "at step 2: Clips",
            "A new job; all of these are kept",
            "x throws it away",
        )
    ), text
    again.press("j", "enter")
    again.wait("neon 1 clip")
    other = wizard()  # one is left to offer
    other.wait("Continue the half-filled job from")
    assert "face" in other.text
    other.press("right", "right", "enter")  # a new job, and the draft stays
    begin(other, 0, "orbit")
    assert {Path(d.folders[0]).name for n in (1, 2, 3, 4) if (d := kept(work, n))} == {"orbit", "neon", "face"}
    assert sum(kept(work, n) is not None for n in range(1, 9)) == 4


def test_one_of_several_drafts_is_thrown_away(work: Path, wizard: Open) -> None:
    for number, (kind, folder) in enumerate((("motion", "orbit"), ("style", "neon"), ("character", "face")), 1):
        DraftStore(work / ("draft.json" if number == 1 else f"draft-{number}.json")).save(
            Draft(step="clips", kind=kind, folders=[str(work / folder)])
        )  # type: ignore[arg-type]
    one = wizard()
    one.wait("3 half-filled jobs: which one?")
    one.press("j", "f9")
    one.wait("Throw this draft away?")
    one.press("enter")  # keeps it
    one.wait(lambda text: "Throw this draft away?" not in text, "the list")
    one.press("f9")
    one.wait("Throw this draft away?")
    one.press("right", "enter")
    one.wait("2 half-filled jobs: which one?")
    assert "neon" not in one.text and kept(work, 2) is None
    one.press("G", "enter")
    one.wait("step 1 of 6")
    assert [d.kind for n in (1, 3) if (d := kept(work, n))] == ["motion", "character"]

"""Which file a caption goes into, what would be written, and writing it all or not at all."""

from collections.abc import Generator
from pathlib import Path

import msgspec
import pytest

from presets.clips.clip_facts import scan_dataset
from presets.errors import UserError
from presets.job.schema import DatasetPanel
from tests.helpers.videos import write_clip, write_image
from wanlora_tui.draft.caption_history import CaptionChange, CaptionHistory
from wanlora_tui.draft.clip_captions import (
    file_of,
    filled,
    one_line,
    problem_of,
    text_to_mend,
    with_changes,
    with_trigger,
)
from wanlora_tui.draft.clip_list import ClipLists, toggle
from wanlora_tui.draft.draft_store import Draft
from wanlora_tui.draft.job_draft import WizardState


@pytest.fixture(scope="module")
def bytes_of_a_clip(tmp_path_factory) -> bytes:
    return write_clip(tmp_path_factory.mktemp("one") / "a.mp4", frames=5).read_bytes()


def state_of(folder: Path) -> WizardState:
    state = WizardState(Draft(folders=[str(folder)]), folder)
    state.scans[str(folder)] = scan_dataset(DatasetPanel(path=str(folder)), 0, folder)
    return state


def entries_of(folder: Path, **panel):
    """(panel, its listed folder)."""
    made = DatasetPanel(path=str(folder), **panel)
    state = WizardState(Draft(folders=[str(folder)]), folder)
    state.scans[str(folder)] = scan_dataset(made, 0, folder)
    return made, ClipLists(state).listed(0)


def test_where_a_caption_goes(tmp_path, bytes_of_a_clip):
    for name in ("alone", "own", "kept", "pair"):
        (tmp_path / f"{name}.mp4").write_bytes(bytes_of_a_clip)
    write_image(tmp_path / "pair.png")
    (tmp_path / "own.caption").write_text("has one")
    (tmp_path / "kept.mp4.txt").write_text("has one")
    panel, listed = entries_of(tmp_path)
    files = {e.name: file_of(e, listed.found, panel).name for e in listed.entries}
    assert files == {
        "alone.mp4": "alone.txt",
        "own.mp4": "own.caption",
        "kept.mp4": "kept.mp4.txt",
        "pair.mp4": "pair.mp4.txt",
        "pair.png": "pair.png.txt",
    }
    panel, listed = entries_of(tmp_path, caption_extension=".long.txt")
    assert file_of(listed.entries[0], listed.found, panel).name == "alone.long.txt"


def test_a_shared_caption_is_not_written_for_both(tmp_path, bytes_of_a_clip):
    (tmp_path / "a.mp4").write_bytes(bytes_of_a_clip)
    write_image(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("of both")
    panel, listed = entries_of(tmp_path)
    assert [file_of(e, listed.found, panel).name for e in listed.entries] == ["a.mp4.txt", "a.png.txt"]


def test_what_lacks_the_trigger_and_what_is_empty(tmp_path, bytes_of_a_clip):
    texts = {"a": "orbit", "b": "[trigger] orbit", "c": "A FRUNG orbits", "d": "frungs orbit", "e": None, "f": ""}
    for name, text in texts.items():
        (tmp_path / f"{name}.mp4").write_bytes(bytes_of_a_clip)
        if text is not None:
            (tmp_path / f"{name}.txt").write_text(text)
    panel, listed = entries_of(tmp_path)
    changes = with_trigger(listed.entries, listed.found, panel, "frung")
    assert {c.name: c.after for c in changes} == {"a.mp4": "[trigger], orbit", "d.mp4": "[trigger], frungs orbit"}
    assert [c.name for c in with_trigger(listed.entries, listed.found, panel, "")] == ["a.mp4", "c.mp4", "d.mp4"]
    made = filled(listed.entries, listed.found, panel, "{name},\n slowly")
    assert {c.name: c.after for c in made} == {"e.mp4": "e, slowly", "f.mp4": "f, slowly"}
    assert filled(listed.entries, listed.found, panel, "  ") == []


def test_all_clips_are_looked_at_once_for_many_captions(tmp_path, bytes_of_a_clip):
    """Not once for each of them: with 5000 that took minutes."""
    looks = []

    class Counted(list):
        def __iter__(self):
            looks.append(1)
            return super().__iter__()

    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.mp4").write_bytes(bytes_of_a_clip)
    (tmp_path / "a.txt").write_text("orbit")
    panel, listed = entries_of(tmp_path)
    found = msgspec.structs.replace(listed.found, clips=Counted(listed.found.clips))
    assert len(filled(listed.entries, found, panel, "{name}")) == 2 and len(looks) == 1
    assert len(with_trigger(listed.entries, found, panel, "frung")) == 1 and len(looks) == 2


def test_facts_follow_what_is_written(tmp_path, bytes_of_a_clip):
    (tmp_path / "a.mp4").write_bytes(bytes_of_a_clip)
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    panel, listed = entries_of(tmp_path)
    (entry,) = listed.entries
    assert text_to_mend(entry)[0] == "café" and "not UTF-8" in text_to_mend(entry)[1]
    change = CaptionChange(entry.path, entry.name, file_of(entry, listed.found, panel), "", "café")
    CaptionHistory().write([change], "one")
    now = with_changes(listed.found, [change])
    again = scan_dataset(panel, 0, tmp_path)
    assert (now.clips, now.problems) == (again.clips, again.problems)


def all_of(steps: Generator[int, None, list[CaptionChange]]) -> list[CaptionChange]:
    """What is left of the steps, and what they come to."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            changes: list[CaptionChange] = end.value
            return changes


def test_all_is_written_or_nothing_and_it_comes_back(tmp_path):
    history = CaptionHistory()
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "c.txt").mkdir()

    def change(name: str) -> CaptionChange:
        return CaptionChange(str(tmp_path / f"{name}.mp4"), f"{name}.mp4", tmp_path / f"{name}.txt", "", f"new {name}")

    with pytest.raises(UserError, match="none was changed"):
        history.write([change("a"), change("b"), change("c")], "new")
    assert (tmp_path / "a.txt").read_text() == "old" and not (tmp_path / "b.txt").exists()
    assert len(history) == 0
    history.write([change("a"), change("b")], "new")
    (tmp_path / "a.txt").write_text("changed by somebody else")
    assert [c.name for c in all_of(history.taking_back())] == ["b.mp4"]
    assert (tmp_path / "a.txt").read_text() == "changed by somebody else" and not (tmp_path / "b.txt").exists()


def test_writing_that_is_given_up_half_way_puts_all_back(tmp_path):
    history = CaptionHistory()
    (tmp_path / "a.txt").write_text("old")
    changes = [CaptionChange(f"{n}.mp4", f"{n}.mp4", tmp_path / f"{n}.txt", "", f"new {n}") for n in ("a", "b", "c")]
    writing = history.writing(changes, "new")
    assert (next(writing), next(writing)) == (1, 2) and (tmp_path / "b.txt").exists()
    writing.close()
    assert (tmp_path / "a.txt").read_text() == "old" and not (tmp_path / "b.txt").exists() and len(history) == 0


def test_taking_back_that_is_given_up_or_fails_half_way_leaves_what_was_written(tmp_path):
    history = CaptionHistory()
    texts = {n: tmp_path / f"{n}.txt" for n in ("a", "b", "c")}
    texts["a"].write_text("old")
    history.write([CaptionChange(f"{n}.mp4", f"{n}.mp4", file, "", f"new {n}") for n, file in texts.items()], "new")
    back = history.taking_back()
    assert (next(back), next(back)) == (1, 2)
    assert texts["a"].read_text() == "old" and not texts["b"].exists()
    back.close()
    assert all(file.read_text() == f"new {n}\n" for n, file in texts.items()) and history.newest == ("new", 3)

    texts["c"].unlink()
    texts["c"].symlink_to("/proc/self/mem")  # a file that cannot be read, by nobody
    with pytest.raises(UserError, match="all are as they were written"):
        all_of(history.taking_back())
    assert texts["a"].read_text() == "new a\n" and texts["b"].read_text() == "new b\n" and len(history) == 1
    texts["c"].unlink()
    assert [c.name for c in all_of(history.taking_back())] == ["a.mp4", "b.mp4"]
    assert texts["a"].read_text() == "old" and not len(history)


def test_a_link_to_a_shared_caption_is_replaced_not_written_through(tmp_path):
    (tmp_path / "shared.txt").write_text("of many")
    (tmp_path / "a.txt").symlink_to("shared.txt")
    CaptionHistory().write([CaptionChange("a.mp4", "a.mp4", tmp_path / "a.txt", "of many", "of one")], "one")
    assert (tmp_path / "shared.txt").read_text() == "of many" and (tmp_path / "a.txt").read_text() == "of one\n"


def test_texts():
    assert one_line(" a \n\n b\r\nc ") == "a b c"
    assert problem_of("x" * 10_000) == "" and "10,001" in problem_of("x" * 10_001) and problem_of("\0")


def test_leaving_out_lists_anew_only_what_changed(tmp_path, bytes_of_a_clip):
    for name in ("a", "b"):
        (tmp_path / f"{name}.mp4").write_bytes(bytes_of_a_clip)
    (tmp_path / "broken.mp4").write_bytes(bytes_of_a_clip[:100])
    state = state_of(tmp_path)
    lists = ClipLists(state)
    before = lists.listed(0)
    assert [e.name for e in before.entries] == ["a.mp4", "b.mp4", "broken.mp4"] and before.entries[2].clip is None
    assert lists.listed(0) is before
    assert toggle(state, before.entries[1]) is True and toggle(state, before.entries[2]) is True
    after = lists.listed(0)
    assert after.entries is before.entries and after.out == 2 and len(after.training.clips) == 1
    assert not [p for p in after.training.problems if p.severity == "error"]
    assert toggle(state, before.entries[1]) is False and toggle(state, before.entries[2]) is False
    assert "datasets[0].exclude" not in state.draft.values

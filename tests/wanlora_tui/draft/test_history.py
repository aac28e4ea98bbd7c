"""Changes of a draft, taken back and made again, and how they are told."""

from presets.job.schema import PromptPanel
from wanlora_tui.draft.draft_store import Draft
from wanlora_tui.draft.history import History, changed, in_words


def told(before: Draft, after: Draft) -> str:
    return in_words(before, after, lambda draft, path: draft.values.get(path, "its default"))


def test_keys_in_one_field_are_one_change_until_the_field_is_left() -> None:
    draft = Draft(step="settings", copy_of="orbit_v1")
    history = History(draft)
    for rank in (1, 16):
        draft.values["target.rank"] = rank
        history.note(draft)
    history.close()
    draft.values["target.rank"] = 32
    history.note(draft)
    draft.step = "review"
    back = history.undo(draft)
    assert back is not None and back.values == {"target.rank": 16} and back.step == "review"
    assert back.copy_of == "orbit_v1", "whose copy it is, no change takes away"
    assert told(draft, back) == "target.rank 32 -> 16"
    first = history.undo(back)
    assert first is not None and first.values == {} and history.undo(first) is None
    again = history.redo(first)
    assert again is not None and again.values == {"target.rank": 16}
    again.values["target.rank"] = 8
    history.note(again)
    assert history.redo(again) is None, "another change has been made since"


def test_a_folder_that_is_typed_anew_is_one_change() -> None:
    draft = Draft(folders=["/a", "/c"])
    history = History(draft)
    draft.typed["datasets[0].path"] = ""
    history.note(draft)
    del draft.typed["datasets[0].path"]
    for folder in ("/b", "/bc"):
        draft.folders = [folder, "/c"]
        history.note(draft)
    back = history.undo(draft)
    assert back == Draft(folders=["/a", "/c"])
    assert list(changed(draft, back)) == ["datasets[0].path"]


def test_all_that_a_draft_holds_can_be_taken_back() -> None:
    changes = {
        "kind": "style",
        "folders": ["/clips/orbit"],
        "values": {"training.lr": 1e-4},
        "typed": {"training.steps": "many"},
        "prompts": [PromptPanel(prompt="a", ctrl_img="b.png")],
        "job_path": "x.toml",
    }
    for name, value in changes.items():
        draft = Draft()
        history = History(draft)
        setattr(draft, name, value)
        history.note(draft)
        back = history.undo(draft)
        assert back == Draft(), name
        assert told(draft, back), name


def test_a_change_is_told_by_what_it_changed() -> None:
    old = Draft(prompts=[PromptPanel(prompt="a")], folders=["/a"], typed={"training.lr": "fast"})
    new = Draft(prompts=[PromptPanel(prompt="b")], folders=["/a", "/b"], values={"training.lr": 0.5})
    assert set(changed(old, new)) == {"datasets", "training.lr", "sample.prompts[0].prompt"}
    said = told(old, new)
    assert "folder b is there" in said and "training.lr fast -> 0.5" in said
    assert told(new, Draft(folders=["/a", "/b"], values={"training.lr": 0.5})) == "sample.prompts 1 -> 0"

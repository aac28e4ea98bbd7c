import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from presets.job.schema import PromptPanel
from tests.helpers import ROOT
from tests.helpers.interface.harness import environment, until
from wanlora_tui.draft import draft_store
from wanlora_tui.draft.draft_store import (
    Draft,
    DraftError,
    Drafts,
    DraftStore,
    age_text,
    default_draft_path,
    without_index,
)


def a_draft() -> Draft:
    return Draft(
        step="settings",
        kind="style",
        folders=["/clips/neon", "/clips/more"],
        values={"training.lr": 5e-5, "datasets[1].resolutions": [512, 768], "model.low_vram": True},
        typed={"training.steps": "many"},
        prompts=[PromptPanel(prompt="a street", ctrl_img="/a.png")],
        job_path="~/neon.toml",
    )


def test_what_is_kept_comes_back_whole(tmp_path: Path) -> None:
    store = DraftStore(tmp_path / "state" / "draft.json")
    assert store.load() is None
    draft = a_draft()
    store.save(draft)
    assert store.load() == draft
    assert draft.saved > 0
    assert [p.name for p in store.path.parent.iterdir()] == ["draft.json"]  # no temporary file stays
    store.delete()
    store.delete()
    assert store.load() is None


def test_the_draft_is_private(tmp_path: Path) -> None:
    store = DraftStore(tmp_path / "state" / "draft.json")
    store.save(a_draft())
    assert store.path.stat().st_mode & 0o077 == 0
    assert store.path.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"kind": "dance"}',
        b'{"surprise": 1}',
        b'{"values": {"training.speed": 1}}',
        b'{"values": {"training.lr": "fast"}}',
        b'{"typed": {"training.speed": "x"}}',
        b'{"folders": ["/a"], "values": {"datasets[1].weight": 2.0}}',
        b'{"values": {"datasets.weight": 2.0}}',
    ],
)
def test_a_file_that_is_no_draft_is_refused_and_set_aside(tmp_path: Path, content: bytes) -> None:
    store = DraftStore(tmp_path / "draft.json")
    store.path.write_bytes(content)
    with pytest.raises(DraftError, match=r"draft\.json"):
        store.load()
    aside = store.set_aside()
    assert aside.read_bytes() == content
    assert store.load() is None


def test_a_draft_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DraftError, match="cannot be kept"):
        DraftStore(tmp_path / "file" / "draft.json").save(Draft())


def test_a_state_is_added_to_the_file_that_is_held_and_the_last_one_counts(tmp_path: Path) -> None:
    store = Drafts(tmp_path / "draft.json").begin(Draft(kind="motion"))
    made = store.path.stat().st_ino
    for step in ("clips", "captions", "settings"):
        store.save(Draft(kind="motion", step=step))
        assert store.path.stat().st_ino == made
        kept = DraftStore(store.path).load()
        assert kept is not None and kept.step == step
    assert [p.name for p in tmp_path.iterdir()] == ["draft.json"]


def test_a_state_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    store = Drafts(tmp_path / "draft.json").begin(Draft(kind="motion"))
    store.save(Draft(kind="style"))
    whole = store.path.read_bytes()
    store.path.write_bytes(whole + whole.splitlines()[-1])  # as of a killed process: all of it but its end
    kept = DraftStore(store.path).load()
    assert kept is not None and kept.kind == "style"
    store.release()
    assert store.hold()
    store.save(Draft(kind="character"))  # not behind the half of a line that another wizard has left
    assert store.path.read_bytes().count(b"\n") == 1
    kept = DraftStore(store.path).load()
    assert kept is not None and kept.kind == "character"


def test_a_full_disk_leaves_the_state_before(tmp_path: Path) -> None:
    path = tmp_path / "draft.json"
    code = (
        "import resource, signal; from pathlib import Path\n"
        "from wanlora_tui.draft.draft_store import Draft, DraftError, Drafts, DraftStore\n"
        f"store = Drafts(Path({str(path)!r})).begin(Draft(kind='motion', folders=['/clips'] * 300))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); size = store.path.stat().st_size\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))\n"
        "try:\n    store.save(Draft(kind='style', folders=['/clips'] * 400))\n"
        "except DraftError as e:\n    print(e)\n"
        "print(store.path.stat().st_size > size, DraftStore(store.path).load().kind)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "store.save(Draft(kind='character'))\n"
        "print(DraftStore(store.path).load().kind, store.path.read_bytes().count(b'\\n'))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    first, *others = ran.stdout.splitlines()
    assert "the draft cannot be kept" in first and others == ["True motion", "character 1"], ran.stdout


def test_a_file_that_is_taken_away_or_grows_long_is_made_anew_and_stays_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafts = Drafts(tmp_path / "draft.json")
    store = drafts.begin(Draft(kind="motion"))
    store.path.unlink()
    store.save(Draft(kind="style"))
    assert kinds(drafts) == [] and not DraftStore(store.path).hold()
    store.path.rename(tmp_path / "elsewhere")
    store.path.write_text("another")
    store.save(Draft(kind="character"))
    assert (kept := DraftStore(store.path).load()) is not None and kept.kind == "character"
    assert kinds(drafts) == [] and not DraftStore(store.path).hold()
    monkeypatch.setattr(draft_store, "MOST", 400)
    for n in range(50):
        store.save(Draft(kind="motion", folders=[f"/clips/{n}"]))
        assert store.path.stat().st_size <= 400
    assert kinds(drafts) == [] and not DraftStore(store.path).hold()
    store.release()
    [(_, last)], _ = drafts.left_over()
    assert last.folders == ["/clips/49"]


@pytest.mark.parametrize("begun", ["DraftStore({path})", "Drafts({path}).begin(Draft(kind='motion'))"])
def test_a_killed_writer_never_leaves_half_a_draft(begun: str, tmp_path: Path) -> None:
    path = tmp_path / "draft.json"
    code = (
        "from pathlib import Path; from wanlora_tui.draft.draft_store import Draft, Drafts, DraftStore\n"
        f"store = {begun.format(path=f'Path({str(path)!r})')}; n = 0\n"
        "while True:\n    n += 1; store.save(Draft(kind='motion', folders=['/clips'] * (n % 2000)))"
    )
    for _ in range(3):
        path.unlink(missing_ok=True)
        writer = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment())
        until(path.exists, "the first draft")
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        draft = DraftStore(path).load()
        assert draft is not None and draft.kind == "motion"


def test_the_default_place_is_the_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_draft_path() == tmp_path / "wanlora" / "draft.json"


def test_entries_move_up_when_a_dataset_goes() -> None:
    entries = {
        "datasets[0].weight": 1,
        "datasets[1].weight": 2,
        "datasets[2].weight": 3,
        "training.lr": 4,
        "datasets[10].weight": 5,
    }
    assert without_index(entries, "datasets", 1) == {
        "datasets[0].weight": 1,
        "datasets[1].weight": 3,
        "training.lr": 4,
        "datasets[9].weight": 5,
    }


def test_ages_read_as_people_say_them() -> None:
    assert [age_text(s) for s in (-5, 3, 61, 720, 3600, 7300, 90_000, 200_000)] == [
        "moments ago",
        "moments ago",
        "1 minute ago",
        "12 minutes ago",
        "1 hour ago",
        "2 hours ago",
        "1 day ago",
        "2 days ago",
    ]


def test_empty_means_nothing_was_chosen() -> None:
    assert Draft(step="clips").is_empty
    assert not Draft(kind="motion").is_empty
    assert not Draft(folders=["/a"]).is_empty


def kinds(drafts: Drafts) -> list[str | None]:
    return [d.kind for _, d in drafts.left_over()[0]]


def test_each_wizard_has_a_draft_of_its_own(tmp_path: Path) -> None:
    drafts = Drafts(tmp_path / "draft.json")
    one, two = drafts.begin(Draft(kind="motion")), drafts.begin(Draft(kind="style"))
    assert [one.path.name, two.path.name] == ["draft.json", "draft-2.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "draft-2.json",
        "draft.json",
    ], "no lock file and no temporary file stays"
    assert kinds(drafts) == [], "both live"
    for _ in range(3):
        one.save(Draft(kind="character"))
        assert kinds(drafts) == [] and not DraftStore(one.path).hold()
    one.release()
    assert kinds(drafts) == ["character"]
    two.delete()
    three = drafts.begin(Draft(kind="motion"))
    assert three.path == two.path and kinds(drafts) == ["character"]


def test_left_over_drafts_come_newest_first_and_only_one_wizard_gets_each(tmp_path: Path) -> None:
    drafts = Drafts(tmp_path / "draft.json")
    for kind in ("motion", "style", "character"):
        drafts.begin(Draft(kind=kind)).release()
    drafts.begin(Draft()).release()
    found, problems = drafts.left_over()
    assert [d.kind for _, d in found] == [
        "character",
        "style",
        "motion",
    ] and problems == [], "an empty one is not worth an offer"
    store = found[1][0]
    assert store.hold()
    assert not DraftStore(store.path).hold() and kinds(drafts) == ["character", "motion"]
    store.delete()
    assert not DraftStore(store.path).hold(), "gone"


def test_a_draft_of_an_earlier_version_is_picked_up(tmp_path: Path) -> None:
    (tmp_path / "draft.json").write_text(
        '{"version":1,"saved":1.0,"step":"clips","kind":"style","folders":["/clips"],"values":{},"typed":{},"prompts":[],"job_path":""}'
    )
    [(store, draft)], _ = Drafts(tmp_path / "draft.json").left_over()
    assert (draft.kind, draft.folders, draft.name) == ("style", ["/clips"], "wan_i2v_style_clips") and store.hold()


def test_an_earlier_version_reads_a_draft_that_was_not_launched(tmp_path: Path) -> None:
    DraftStore(tmp_path / "draft.json").save(Draft(kind="style"))
    assert b"launched" not in (tmp_path / "draft.json").read_bytes()


def test_files_that_are_no_drafts_are_told_and_never_overwritten(tmp_path: Path) -> None:
    drafts = Drafts(tmp_path / "draft.json")
    for text in ("{", "{{"):
        drafts.first.write_text(text)
        (tmp_path / "draft-2.json").write_text(text)
        found, problems = drafts.left_over()
        assert found == [] and len(problems) == 2 and "draft-2.json.unread" in problems[0], problems
    left = {p.name: p.read_text() for p in tmp_path.iterdir()}
    assert left == {
        "draft.json.unread": "{",
        "draft.json.unread-2": "{{",
        "draft-2.json.unread": "{",
        "draft-2.json.unread-2": "{{",
    }
    (tmp_path / "draft-notes.json").write_text("mine")
    (tmp_path / "draft-3.json").mkdir()
    found, problems = drafts.left_over()
    assert found == [] and len(problems) == 1 and "draft-3.json" in problems[0]
    assert drafts.begin(Draft(kind="motion")).path == drafts.first


def test_a_killed_wizard_holds_nothing(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from wanlora_tui.draft.draft_store import Draft, Drafts\n"
        f"store = Drafts(Path({str(tmp_path / 'draft.json')!r})).begin(Draft(kind='motion'))\n"
        "while True:\n    store.save(Draft(kind='motion'))"
    )
    drafts = Drafts(tmp_path / "draft.json")
    writers = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment()) for _ in range(2)]
    until(lambda: len(list(tmp_path.glob("draft*.json"))) == 2, "both drafts")
    for _ in range(10):  # while they write as fast as they can
        assert kinds(drafts) == [] and not DraftStore(drafts.first).hold()
    os.kill(writers[0].pid, signal.SIGKILL)
    writers[0].wait()
    assert kinds(drafts) == ["motion"]
    os.kill(writers[1].pid, signal.SIGKILL)
    writers[1].wait()
    assert kinds(drafts) == ["motion", "motion"]

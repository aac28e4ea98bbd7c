"""Fetching a run: whole files only, over cuts, over what is here already, and nowhere but into the folder."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from presets.errors import UserError
from wanlora_tui.transfer.fetching import Fetch
from wanlora_tui.transfer.here import ALL_STEPS, HereFiles
from wanlora_tui.transfer.messages import Cut, FileEntry, Listing
from wanlora_tui.transfer.progress import Progress
from wanlora_tui.transfer.retrying import LostConnection, Retrying
from wanlora_tui.transfer.safe_names import folder_named


class Room(NamedTuple):
    """Of a disk, as shutil says it."""

    total: int
    used: int
    free: int


class CutFiles(HereFiles):
    """Files behind a line that is cut after so many bytes, again and again."""

    def __init__(self, after: int, cuts: list[int]) -> None:
        self.after, self.cuts = after, cuts

    def digest(self, path: str, length: int) -> str:
        return HereFiles().digest(path, length)

    def read(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        left = self.after
        while length:
            piece = min(1000, length)
            if left < piece:
                self.cuts.append(offset)
                raise Cut("reset by peer")
            yield from super().read(path, offset, piece)
            left, offset, length = left - piece, offset + piece, length - piece


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a bit of everything."""
    run = tmp_path / "far/orbit"
    for name, size in {
        "orbit_000000010_high_noise.safetensors": 3000,
        "orbit_000000010_low_noise.safetensors": 3001,
        "orbit_000000020_high_noise.safetensors": 10_000,
        "orbit_000000020_low_noise.safetensors": 10_001,
        "samples/step_000000010/00.mp4": 500,
        "samples/step_000000020/00.mp4": 501,
        "events.jsonl": 4000,
        "job.toml": 100,
        "control/1.json": 10,
        "logs/attempt_1.log": 50,
    }.items():
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))
    return run


def fetched(run: Path, to: Path, what="loras", step=None, *, files=HereFiles, overwrite=False) -> Fetch:
    fetch = Fetch(Retrying(files, lambda _: None, sleep=lambda _: None), str(run), to, overwrite=overwrite)
    listing = fetch.list(what, step)
    fetch.fetch(listing, Progress(sum(f.size for f in listing.files), lambda _: None, 1e9))
    return fetch


def names(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_the_newest_loras_are_fetched_unless_a_step_is_asked_for(run: Path, tmp_path: Path):
    fetched(run, tmp_path / "a")
    assert names(tmp_path / "a") == {f"orbit_000000020_{e}_noise.safetensors" for e in ("high", "low")}
    fetched(run, tmp_path / "b", step=10)
    assert names(tmp_path / "b") == {f"orbit_000000010_{e}_noise.safetensors" for e in ("high", "low")}
    (run / "orbit_high_noise.safetensors").write_bytes(b"final")
    fetched(run, tmp_path / "c")
    assert names(tmp_path / "c") == {"orbit_high_noise.safetensors"}
    fetched(run, tmp_path / "d", step=ALL_STEPS)
    assert len(names(tmp_path / "d")) == 5


def test_what_else_can_be_fetched(run: Path, tmp_path: Path):
    fetched(run, tmp_path / "p", "previews", 20)
    assert names(tmp_path / "p") == {"samples/step_000000020/00.mp4"}
    fetched(run, tmp_path / "r", "report")
    assert names(tmp_path / "r") == {"events.jsonl", "job.toml"}
    (run / "report.html").write_text("<!doctype html>")
    fetched(run, tmp_path / "r", "report")
    assert names(tmp_path / "r") == {"events.jsonl", "job.toml", "report.html"}
    (run / "checkpoints").symlink_to("/etc")
    (run / "logs/passwd").symlink_to("/etc/passwd")
    fetch = fetched(run, tmp_path / "all", "run")
    assert names(tmp_path / "all") == names(run) - {"control/1.json", "logs/passwd"}
    assert fetch.list("run").passed_over == ["logs/passwd: a link", "checkpoints: a link"]
    there, here = run / "job.toml", tmp_path / "all/job.toml"
    assert here.read_bytes() == there.read_bytes() and here.stat().st_mtime_ns == there.stat().st_mtime_ns


def test_a_cut_fetch_goes_on_where_it_was(run: Path, tmp_path: Path):
    cuts: list[int] = []
    fetched(run, tmp_path / "to", files=lambda: CutFiles(4000, cuts))
    assert cuts == [4000, 8000, 4000, 8000]
    for name in names(tmp_path / "to"):
        assert (tmp_path / "to" / name).read_bytes() == (run / name).read_bytes()


def test_a_line_that_stays_cut_leaves_what_came(run: Path, tmp_path: Path):
    gone: list[int] = []
    lives = [CutFiles(4000, gone)]

    def connect() -> HereFiles:
        if not lives:
            raise Cut("no route to host")
        return lives.pop()

    with pytest.raises(LostConnection, match="the same command goes on"):
        fetched(run, tmp_path / "to", files=connect)
    assert names(tmp_path / "to") == {"orbit_000000020_high_noise.safetensors.part"}
    read: list[int] = []

    class Counting(HereFiles):
        def read(self, path: str, offset: int, length: int) -> Iterator[bytes]:
            read.append(offset)
            return super().read(path, offset, length)

    fetched(run, tmp_path / "to", files=Counting)
    assert 4000 in read and names(tmp_path / "to") == {
        f"orbit_000000020_{e}_noise.safetensors" for e in ("high", "low")
    }


def test_what_came_before_needs_no_more_room(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A disk that it just fits on is nearly full after a cut."""
    name, to = "orbit_000000020_high_noise.safetensors", tmp_path / "to"
    to.mkdir()
    (to / f"{name}.part").write_bytes((run / name).read_bytes()[:9000])
    monkeypatch.setattr("shutil.disk_usage", lambda path: Room(30_000, 18_999, 11_001))
    assert not fetched(run, to).refused
    assert (to / name).read_bytes() == (run / name).read_bytes()
    monkeypatch.setattr("shutil.disk_usage", lambda path: Room(30_000, 10_000, 20_000))
    with pytest.raises(UserError, match="do not fit on the disk"):
        fetched(run, tmp_path / "other")


def test_a_damaged_beginning_is_fetched_anew(run: Path, tmp_path: Path):
    part = tmp_path / "to/orbit_000000020_high_noise.safetensors.part"
    part.parent.mkdir()
    part.write_bytes(b"x" * 5000)
    fetched(run, part.parent)
    whole = part.with_suffix("")
    assert whole.read_bytes() == (run / whole.name).read_bytes() and not part.exists()


def test_another_file_of_that_name_stays(run: Path, tmp_path: Path):
    mine = tmp_path / "to/orbit_000000020_low_noise.safetensors"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    fetch = fetched(run, mine.parent)
    assert mine.read_bytes() == b"mine" and [r.name for r in fetch.refused] == [mine.name]
    assert len(names(mine.parent)) == 2
    assert not fetched(run, mine.parent, overwrite=True).refused
    assert mine.read_bytes() == (run / mine.name).read_bytes()


def test_events_that_have_grown_are_gone_on_with(run: Path, tmp_path: Path):
    fetched(run, tmp_path / "to", "report")
    with (run / "events.jsonl").open("ab") as f:
        f.write(b"more")
    assert not fetched(run, tmp_path / "to", "report").refused
    assert (tmp_path / "to/events.jsonl").read_bytes() == (run / "events.jsonl").read_bytes()


def test_a_manifest_knows_the_hash(run: Path, tmp_path: Path):
    state = run / "checkpoints/step_000000020/state.bin"
    state.parent.mkdir(parents=True)
    state.write_bytes(b"state")
    digest = hashlib.sha256(b"other").hexdigest()
    (state.parent / "manifest.json").write_text(f'{{"files": {{"state.bin": {{"bytes": 5, "sha256": "{digest}"}}}}}}')
    fetch = fetched(run, tmp_path / "to", "run")
    assert [(r.name, "another SHA-256" in r.why) for r in fetch.refused] == [
        ("checkpoints/step_000000020/state.bin", True)
    ]
    assert not (tmp_path / "to/checkpoints/step_000000020/state.bin").exists()


@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/evil", "a/../../evil", "a//b", "./a", "", "a\nb", "a\x1b]0;x\x07", "a\u202eb", "x" * 250, "."],
)
def test_a_hostile_name_is_written_nowhere(run: Path, tmp_path: Path, name: str):
    class Hostile(HereFiles):
        def list_run(self, folder, what, step=None):
            return Listing([FileEntry("fine", 1, 1), FileEntry(name, 1, 1)])

    before = names(tmp_path)
    with pytest.raises(UserError, match="the other machine names a file"):
        fetched(run, tmp_path / "to", files=Hostile)
    assert names(tmp_path) == before


@pytest.mark.parametrize("name", [".ssh/authorized_keys", ".bashrc", ".config/autostart/x.desktop"])
def test_nothing_hidden_is_written_into_a_home_folder(run: Path, tmp_path: Path, name: str):
    class Hostile(HereFiles):
        def list_run(self, folder, what, step=None):
            return Listing([FileEntry(name, 4, 1), FileEntry("job.toml", 100, 1)])

    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).write_text("evil")
    fetched(run, tmp_path / "to", files=Hostile)
    assert names(tmp_path / "to") == {"job.toml"}
    with pytest.raises(UserError, match="is no name of a folder"):
        folder_named(name.partition("/")[0])


def test_a_whole_run_comes_without_its_lock(run: Path, tmp_path: Path):
    for name in (".lock", ".reserve", ".hidden"):
        (run / name).touch()
    fetch = Fetch(Retrying(HereFiles, lambda _: None), str(run), tmp_path / "to")
    listing = fetch.list("run")
    assert listing.passed_over == ["'.hidden': a hidden file"]
    assert not any(file.path.startswith(".") for file in listing.files)


def test_a_folder_that_cannot_be_read_there_is_said(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("step_000000010"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    listing = HereFiles().list_run(str(run), "run")
    assert listing.passed_over == ["samples/step_000000010: cannot be read: Permission denied"]
    (run / "empty").mkdir()
    assert HereFiles().list_run(str(run / "empty"), "previews") == Listing([])  # what is not there is no trouble


def test_links_that_lie_here_lead_nowhere(run: Path, tmp_path: Path):
    to, outside = tmp_path / "to", tmp_path / "outside"
    to.mkdir()
    outside.mkdir()
    (to / "samples").symlink_to(outside)
    with pytest.raises(UserError, match="is a link"):
        fetched(run, to, "previews")
    (to / "samples").unlink()
    (to / "orbit_000000020_low_noise.safetensors.part").symlink_to(outside / "stolen")
    assert "is a link" in fetched(run, to).refused[0].why
    assert not names(outside)


@pytest.mark.parametrize("name", ["samples/step_000000020/sheet.png", "report.html", "judge.json", "events.fold"])
def test_what_is_written_anew_while_a_run_goes_on_is_fetched_again(run: Path, tmp_path: Path, name: str):
    """And takes nothing else for another run's; nor does a job file that a resume has changed, which stays as it is
    here."""
    to, compared = tmp_path / "here", run / "samples/compare_00.png"
    for when in (1, 2):
        for path in (run / name, compared, run / "job.toml"):
            path.write_bytes(f"of time {when}".encode())
            os.utime(path, ns=(when, when))
        found = fetched(run, to, "run")
    assert [r.name for r in found.refused] == ["job.toml"]
    assert (to / name).read_bytes() == (to / "samples/compare_00.png").read_bytes() == b"of time 2"
    assert (to / "job.toml").read_bytes() == b"of time 1"


def test_what_the_run_has_made_anew_is_fetched_again(run: Path, tmp_path: Path):
    to, compared, first = tmp_path / "here", run / "samples/compare_00.png", run / "samples/step_000000010/00.mp4"
    compared.write_bytes(b"one step")
    os.utime(compared, ns=(1, 1))
    fetched(run, to, "previews")
    compared.write_bytes(b"two steps")
    os.utime(compared, ns=(2, 2))
    assert not fetched(run, to, "previews").refused
    assert (to / "samples/compare_00.png").read_bytes() == b"two steps"

    compared.write_bytes(b"of another time")  # older than what is here
    os.utime(compared, ns=(1, 1))
    assert [r.name for r in fetched(run, to, "previews").refused] == ["samples/compare_00.png"]

    compared.write_bytes(b"of another run of this name")
    first.write_bytes(b"its preview")
    os.utime(compared, ns=(3, 3))
    assert {r.name for r in fetched(run, to, "previews").refused} == {
        "samples/compare_00.png",
        "samples/step_000000010/00.mp4",
    }
    assert (to / "samples/compare_00.png").read_bytes() == b"two steps"

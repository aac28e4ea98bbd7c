"""What survives a power loss: on the strictest disk that POSIX allows, where nothing lasts but what was synced, file by
file and folder by folder."""

import os
import shutil
import stat
from pathlib import Path

import pytest

from engine.adapters import lora
from engine.preview.video_files import is_picture, is_video
from engine.run import run_job
from engine.runfolder import checkpoint
from engine.runfolder.console import Console
from engine.runfolder.event_log import EventLog
from engine.system.durable_files import make_folder, sha256
from presets.runs.events import Event, decode_event
from tests.helpers.jobs import of_kind, write_job
from tests.helpers.training.sameness import differences


class Disk:
    """What is on the disk of all that lies under `root`: the content of a file and the names in a folder as they were
    when they were last synced."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self._sync = root, os.fsync
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._held: list[int] = []  # an inode that is still open is given to no other file
        patch.setattr(os, "fsync", self.fsync)
        self.sync(root)

    def close(self) -> None:
        for fd in self._held:
            os.close(fd)

    def sync(self, folder: Path) -> None:
        fd = os.open(folder, os.O_RDONLY)
        self.fsync(fd)
        os.close(fd)

    def fsync(self, fd: int) -> None:
        self._sync(fd)
        self._held.append(os.dup(fd))
        path, found = Path(f"/proc/self/fd/{fd}").readlink(), os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            with os.scandir(path) as entries:
                self._names[found.st_ino] = {entry.name: entry.inode() for entry in entries}
        else:
            self._contents[found.st_ino] = path.read_bytes()

    def after_power_loss(self, to: Path) -> Path:
        """Write what is left to the folder `to`: a file that was never synced is empty, a folder that was never synced
        holds nothing."""
        kinds = {entry.stat().st_ino: entry.is_dir() for entry in self.root.rglob("*")}

        def write(inode: int, place: Path) -> None:
            if inode in self._names or kinds.get(inode):
                place.mkdir()
                for name, below in self._names.get(inode, {}).items():
                    write(below, place / name)
            else:
                place.write_bytes(self._contents.get(inode, b""))

        write(self.root.stat().st_ino, to)
        return to


def test_what_events_tell_of_is_on_the_disk_and_the_run_goes_on_from_there(tiny, tmp_path, monkeypatch):
    """Power fails at each checkpoint, preview and at the end: whatever was told of lies there whole. After two of them
    the run is taken up again."""
    how = {
        "prompts": 1,
        "steps": 3,
        "ema": True,
        "save": {"every": 2, "keep": 2},
        "sample": {"every": 2, "steps": 1, "width": 32, "height": 32, "num_frames": 1},
    }
    job = write_job(tmp_path / "straight", tiny, **how)
    lost = tmp_path / "lost"
    lost.mkdir()
    show = Console.show
    with monkeypatch.context() as patch:
        disk = Disk(tmp_path / "straight", patch)

        def shown(self: Console, event: Event) -> None:
            show(self, event)
            if event.kind not in ("checkpoint", "sample", "done"):
                return
            left = disk.after_power_loss(lost / f"{event.kind}-{event.data['step']}") / "runs" / "t"
            assert (left / "job.toml").read_text() == (tmp_path / "straight/runs/t/job.toml").read_text()
            match event.kind:
                case "checkpoint":
                    assert checkpoint.verify(left / event.data["path"]) == ""
                    assert (
                        [path.name for path in left.glob(f"t_{event.data['step']:09d}_*") if lora.is_whole(path)]
                        == [path.name for path in left.glob(f"t_{event.data['step']:09d}_*")]
                        != []
                    )
                case "sample":
                    assert (
                        sha256(left / event.data["path"]) == event.data["sha256"]
                        and sha256(left / event.data["poster"]) == event.data["poster_sha256"]
                    )
                    assert (
                        is_picture(left / event.data["sheet"])
                        and is_picture(left / event.data["compare"])
                        and is_video(left / event.data["compare_video"])
                    )
                case "done":
                    assert event.data["files"] and all(lora.is_whole(left / name) for name in event.data["files"])
                    assert decode_event((left / "events.jsonl").read_bytes().splitlines()[-1]) == event

        patch.setattr(Console, "show", shown)
        assert run_job(job, None, resume=False, workers=0, device="cpu") == 0
        disk.close()
    assert sorted(path.name for path in lost.iterdir()) == [
        "checkpoint-2",
        "checkpoint-3",
        "done-3",
        "sample-0",
        "sample-2",
        "sample-3",
    ]
    runs, whole = tmp_path / "straight" / "runs", tmp_path / "straight" / "whole"
    runs.rename(whole)
    for where in ("sample-2", "sample-3"):
        (lost / where / "runs").rename(runs)
        assert run_job(job, None, resume=True, workers=0, device="cpu") == 0
        assert differences(runs / "t", whole / "t") == []
        assert [d["resumed_from"] for d in of_kind(runs / "t", "started")][-1] == int(where[-1])
        shutil.rmtree(runs)


def test_a_branch_that_was_gone_back_from_is_on_the_disk_where_it_was_moved_to(tiny, tmp_path, monkeypatch):
    """Power fails as the attempt says that it has started at step 1: the branch must not lie in the way again."""
    job = write_job(
        tmp_path / "job",
        tiny,
        prompts=1,
        steps=2,
        save={"every": 1, "keep": 2},
        sample={"every": 0, "first": False, "steps": 1, "width": 32, "height": 32, "num_frames": 1},
    )
    run = tmp_path / "job" / "runs" / "t"
    show = Console.show
    with monkeypatch.context() as patch:
        disk = Disk(tmp_path / "job", patch)
        assert run_job(job, None, resume=False, workers=0, device="cpu") == 0
        seen = []

        def shown(self: Console, event: Event) -> None:
            show(self, event)
            if event.kind == "started":
                left = disk.after_power_loss(tmp_path / "left") / "runs" / "t"
                seen.extend(
                    sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "2" in path.name)
                    for folder in (run, left)
                )
                assert checkpoint.verify(
                    left / "abandoned/attempt_1/checkpoints/step_000000002"
                ) == "" and lora.is_whole(left / "abandoned/attempt_1/t_low_noise.safetensors")

        patch.setattr(Console, "show", shown)
        assert run_job(job, None, resume=True, from_step=1, workers=0, device="cpu") == 0
        disk.close()
    assert seen[0] == seen[1] and len(seen[0]) == 4 and all(name.startswith("abandoned") for name in seen[0])


def test_how_an_attempt_ended_is_on_the_disk(tmp_path, monkeypatch):
    disk = Disk(tmp_path, monkeypatch)
    log = EventLog(tmp_path, listener=lambda event: None)
    log.emit("failed", cause="c", next="n")
    log.close()
    assert b'"failed"' in (disk.after_power_loss(tmp_path / "left") / "events.jsonl").read_bytes()
    disk.close()


def test_new_folders_are_known_to_those_they_lie_in(tmp_path, monkeypatch):
    disk = Disk(tmp_path, monkeypatch)
    make_folder(tmp_path / "a" / "b" / "c")
    make_folder(tmp_path / "a" / "b" / "c")
    assert (disk.after_power_loss(tmp_path / "left") / "a" / "b" / "c").is_dir()
    disk.close()

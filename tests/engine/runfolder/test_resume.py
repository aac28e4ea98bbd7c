"""Where an attempt begins: jobs that changed, checkpoints chosen, rollbacks. No model, no training."""

from pathlib import Path

import pytest
import torch

from engine.runfolder import checkpoint
from engine.runfolder.event_log import EventLog
from engine.runfolder.resume import ResumePoint, find_resume_point, set_aside_later_files
from presets.errors import UserError
from presets.job.resume_check import JOB_FILE
from presets.job.schema import DatasetPanel, Job, JobPanel, ModelPanel, MultistagePanel
from presets.job.toml_file import absolute_paths, get_value, job_to_dict, save_job, with_value

JOB = Job(
    job=JobPanel(name="t"),
    model=ModelPanel(path="base"),
    multistage=MultistagePanel(switch_every=2),
    datasets=[DatasetPanel(path="clips")],
)


def changed(job: Job, **values: object) -> Job:
    for path, value in values.items():
        job = with_value(job, path.replace("__", "."), value)
    return job


class Place:
    """A run folder, as a trainer would have left it."""

    def __init__(self, base: Path) -> None:
        self.base, self.run = base, base / "runs" / "t"
        self.run.mkdir(parents=True)
        save_job(absolute_paths(JOB, base), self.run / JOB_FILE)
        self.log = EventLog(self.run, listener=lambda event: None)
        self.log.emit("started", resumed_from=0)

    def save(self, step: int, job: Job = JOB) -> Path:
        state = checkpoint.State(
            step,
            {"high_noise": {"a": torch.full((2,), float(step))}},
            {"high_noise": {"state": {}}},
            meta={"job": job_to_dict(absolute_paths(job, self.base))},
        )
        folder, sha256 = checkpoint.save(self.run, state)
        self.log.emit("checkpoint", step=step, path=f"checkpoints/{folder.name}", sha256=sha256)
        (self.run / f"t_{step:09d}_high_noise.safetensors").write_text(str(step))
        (self.run / "samples" / folder.name).mkdir(parents=True)
        return folder

    def set(self, step: int, field: str, old: object, new: object) -> None:
        self.log.emit("changed", field=field, old=old, new=new, step=step)

    def resume(self, job: Job, *, from_step: int | None = None) -> ResumePoint:
        """An attempt that begins, says so, and is killed before its first step."""
        begin = self.begin(job, from_step=from_step)
        set_aside_later_files(begin, self.run, self.log)
        self.log.emit("started", resumed_from=begin.step)
        for s in begin.settings:
            self.log.emit("changed", field=s.field, old=s.old, new=s.new, step=s.step, edited=True)
        if begin.keep:
            save_job(begin.keep, self.run / JOB_FILE)
        return begin

    def begin(self, job: Job = JOB, *, from_step: int | None = None, accept: bool = False) -> ResumePoint:
        return find_resume_point(self.run, job, self.base, from_step=from_step, accept=accept)

    def names(self, folder: str = "") -> list[str]:
        return sorted(
            str(p.relative_to(self.run / folder))
            for p in (self.run / folder).rglob("*")
            if "step_" in p.name or "_noise" in p.name
        )


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path)


def test_the_newest_checkpoint_that_verifies_and_an_unchanged_job(place):
    place.save(2)
    (place.save(4) / "state.json").write_text("torn")
    begin = place.begin()
    assert (begin.step, begin.checkpoint.name, begin.job, begin.since, begin.keep) == (
        2,
        "step_000000002",
        JOB,
        [],
        None,
    )
    assert len(begin.damaged) == 1 and "step_000000004" in begin.damaged[0]
    set_aside_later_files(begin, place.run, place.log)
    assert [f.name for f in checkpoint.listed(place.run)] == ["step_000000002"]


def test_nothing_was_saved(place):
    begin = place.begin()
    assert (begin.step, begin.checkpoint, begin.resumed) == (0, None, True)
    told = []
    log = EventLog(place.run, listener=told.append)
    set_aside_later_files(ResumePoint(job=JOB), place.run, log)
    assert not told, "a run that begins anew misses no checkpoint"
    set_aside_later_files(begin, place.run, log)
    assert "no checkpoint to resume from" in told[0].data["text"]


def test_what_was_set_while_it_trained_counts_on(place):
    """lr was set before the checkpoint and again behind it; the file still says what it said at first."""
    place.set(1, "training.lr", 1e-4, 5e-5)
    place.save(2, changed(JOB, training__lr=5e-5))
    place.set(3, "training.lr", 5e-5, 2e-5)
    begin = place.begin()
    assert begin.job.training.lr == 5e-5 and begin.since == [] and begin.keep is None
    assert [(s.step, s.field, s.old, s.new) for s in begin.ahead] == [(3, "training.lr", 5e-5, 2e-5)]


def test_what_was_edited_in_the_file_wins_over_what_was_set(place):
    place.set(1, "training.lr", 1e-4, 5e-5)
    place.save(2, changed(JOB, training__lr=5e-5))
    place.set(3, "training.lr", 5e-5, 2e-5)
    place.set(3, "save.every", 250, 7)
    begin = place.begin(changed(JOB, training__lr=9e-5))
    assert begin.job.training.lr == 9e-5 and [s.field for s in begin.ahead] == ["save.every"]
    assert [(s.step, s.field, s.old, s.new) for s in begin.settings] == [(2, "training.lr", 5e-5, 9e-5)]
    assert begin.keep is not None and begin.keep.training.lr == 9e-5 and begin.comparable


def test_an_edit_that_was_told_and_kept_is_not_lost_by_a_kill(place):
    place.save(2)
    edited = changed(JOB, training__lr=9e-5)
    place.log.emit("started", resumed_from=2)
    for s in place.begin(edited).settings:
        place.set(s.step, s.field, s.old, s.new)
    save_job(absolute_paths(edited, place.base), place.run / JOB_FILE)
    begin = place.begin(edited)
    assert begin.keep is None and [(s.step, s.new) for s in begin.ahead] == [(2, 9e-5)]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("training.loss", "mae"),
        ("job.seed", 7),
        ("datasets[0].num_frames", 5),
        ("multistage.switch_every", 3),
        ("training.gradient_accumulation", 2),
    ],
)
def test_changes_that_break_exactness_are_shown_and_asked_about(place, path, value):
    place.save(2)
    edited = with_value(JOB, path, value)
    with pytest.raises(UserError) as refused:
        place.begin(edited)
    assert f"\n  {path}: " in str(refused.value) and "--accept-changes" in refused.value.fix
    begin = place.begin(edited, accept=True)
    assert not begin.comparable and [(s.field, s.new) for s in begin.settings] == [(path, value)]
    save_job(begin.keep, place.run / JOB_FILE)
    assert place.begin(edited).comparable is False, "accepted once, it is not asked again"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("target.rank", 8),
        ("multistage.low_noise", False),
        ("multistage.high.rank", 4),
        ("target.exclude", ["ffn"]),
        ("target.include", ["blocks.0"]),
        ("training.optimizer", "prodigy"),
    ],
)
def test_what_does_not_fit_the_checkpoints_stays_refused(place, path, value):
    place.save(2)
    with pytest.raises(UserError, match="its checkpoints do not fit it") as refused:
        place.begin(with_value(JOB, path, value), accept=True)
    assert path in str(refused.value) and "--accept-changes" not in str(refused.value)


def test_before_anything_was_trained_even_that_may_be_accepted(place):
    with pytest.raises(UserError, match="--accept-changes"):
        place.begin(changed(JOB, target__rank=8))
    assert place.begin(changed(JOB, target__rank=8), accept=True).job.target.rank == 8


@pytest.mark.parametrize("path", ["job.gpus", "model.low_vram", "save.keep", "sample.guidance", "training.steps"])
def test_what_does_no_harm_is_not_asked_about(place, path):
    place.save(2)
    value = {"job.gpus": [1], "model.low_vram": True, "save.keep": 9, "sample.guidance": 3.0, "training.steps": 9}[path]
    begin = place.begin(with_value(JOB, path, value))
    assert get_value(begin.job, path) == value and begin.comparable and [s.field for s in begin.settings] == [path]


def test_a_job_file_of_the_run_that_cannot_be_read_is_asked_about(place):
    place.save(2)
    (place.run / JOB_FILE).write_text("[job")
    with pytest.raises(UserError, match="nobody can tell"):
        place.begin()
    assert place.begin(accept=True).keep == absolute_paths(JOB, place.base)


def test_going_back_moves_what_came_later_and_loses_nothing(place):
    for step in (2, 4, 6):
        place.save(step)
    place.set(5, "training.lr", 1e-4, 5e-5)
    for name in ("t_high_noise.safetensors", "t_low_noise.safetensors"):
        (place.run / name).write_text("final")
    before = place.names()
    place.log.close()
    place.log = EventLog(place.run, listener=lambda event: None)
    begin = place.begin(from_step=2)
    assert (begin.step, begin.rollback, begin.ahead) == (2, True, [])
    set_aside_later_files(begin, place.run, place.log)
    assert place.names("abandoned/attempt_1") == sorted(name for name in before if "2" not in name)
    assert [n for n in place.names() if not n.startswith("abandoned")] == [name for name in before if "2" in name]
    assert (place.run / "abandoned/attempt_1/t_high_noise.safetensors").read_text() == "final"


def test_a_rollback_that_was_cut_short_goes_on_in_the_same_folder(place, monkeypatch):
    for step in (2, 4, 6):
        place.save(step)
    before = place.names()
    rename = Path.rename

    def killed(self: Path, to: Path) -> Path:
        if "4" in self.name:
            raise KeyboardInterrupt
        return rename(self, to)

    place.log.close()
    place.log = EventLog(place.run, listener=lambda event: None)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(Path, "rename", killed)
        set_aside_later_files(place.begin(from_step=2), place.run, place.log)
    assert any("4" in name for name in place.names() if not name.startswith("abandoned"))
    place.log.close()
    place.log = EventLog(place.run, listener=lambda event: None)
    set_aside_later_files(place.begin(), place.run, place.log)
    assert place.names("abandoned/attempt_1") == sorted(name for name in before if "2" not in name)
    assert not (place.run / "abandoned/attempt_2").exists()


def test_a_run_that_was_cut_short_and_is_done_goes_on_with_the_steps_of_its_file(place):
    place.set(2, "training.steps", JOB.training.steps, 2)
    place.save(2, changed(JOB, training__steps=2))
    assert place.begin().job.training.steps == 2, "a kill came before the end"
    place.log.emit("done", step=2)
    begin = place.begin()
    assert (
        begin.job.training.steps == JOB.training.steps
        and begin.ahead == []
        and [(s.field, s.old) for s in begin.settings] == [("training.steps", 2)]
    )
    place.log.emit("started", resumed_from=2)
    place.set(2, "training.steps", 2, JOB.training.steps)
    assert [(s.field, s.new) for s in place.begin().ahead] == [("training.steps", JOB.training.steps)], (
        "killed before the next checkpoint, it goes on as far"
    )


def test_a_rollback_that_was_cut_short_is_taken_up_again(place):
    """The kill came behind the event that tells of it, and before anything was moved."""
    for step in (2, 4):
        place.save(step)
    place.set(2, "training.lr", 1e-4, 5e-5)
    place.log.emit("log", level="info", text="going back", rollback=2)
    begin = place.begin()
    assert (begin.step, begin.rollback, begin.ahead) == (2, True, [])
    place.log.emit("started", resumed_from=2)
    assert place.begin().step == 4


def test_going_back_keeps_the_number_of_steps_that_the_file_has_by_now(place):
    """The file was given more steps at a resume; the checkpoints of before still have the old number."""
    for step in (2, 4):
        place.save(step)
    longer = changed(JOB, training__steps=9000, training__lr=5e-5)
    assert place.resume(longer).job.training.steps == 9000
    place.save(6, longer)
    for _ in range(2):  # and again, as after a kill
        begin = place.resume(longer, from_step=2)
        assert (begin.job.training.steps, begin.job.training.lr, begin.ahead) == (9000, 5e-5, [])
        assert {s.field: s.new for s in begin.settings} == {"training.steps": 9000, "training.lr": 5e-5}
    assert [s.new for s in place.begin(longer).ahead] == [5e-5, 9000], "killed before its first checkpoint"


def test_going_back_keeps_what_had_been_set_there_until_the_file_is_edited(place):
    place.set(1, "training.steps", JOB.training.steps, 7000)
    place.save(2, changed(JOB, training__steps=7000))
    place.set(3, "training.steps", 7000, 8000)
    place.save(4, changed(JOB, training__steps=8000))
    assert place.begin(from_step=4).job.training.steps == 8000
    assert place.begin(from_step=2).job.training.steps == 7000, "what was set later is forgotten"
    assert place.resume(changed(JOB, training__steps=9000)).job.training.steps == 9000
    assert place.begin(changed(JOB, training__steps=9000), from_step=2).job.training.steps == 9000


def test_a_step_without_a_checkpoint_names_those_there_are(place):
    for step in (2, 4):
        place.save(step)
    with pytest.raises(UserError, match="2, 4"):
        place.begin(from_step=3)
    (checkpoint.listed(place.run)[0] / "manifest.json").unlink()
    with pytest.raises(UserError, match="damaged"):
        place.begin(from_step=2)


def test_a_checkpoint_that_was_moved_aside_for_one_that_never_came_is_found(place):
    folder = place.save(2)
    folder.rename(folder.with_name("step_000000002.old-77"))
    assert place.begin().step == 2

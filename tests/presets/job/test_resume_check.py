"""Whether a run may go on with its job file as it is: verdicts, what they rest on, acceptances, sentences."""

import re
from pathlib import Path

import msgspec
import pytest

from presets.errors import UserError
from presets.job.diff import FREE_TO_CHANGE, IMPOSSIBLE_TO_CHANGE, LIVE_FIELDS, changes, is_free
from presets.job.resume_check import UNSEEN, ResumeCheck, check_resume, has_checkpoint, held_job
from presets.job.schema import DatasetPanel, Job, JobPanel, LayersPanel, MergePanel
from presets.job.toml_file import save_job, with_value
from tests.helpers.facts import job

JOB = Job(job=JobPanel(name="t"), datasets=[DatasetPanel(path="/clips")])
FREE, LOSS, RANK = ("training.lr", 5e-5), ("training.loss", "mae"), ("target.rank", 8)


def asked(*edits: tuple[str, object], trained: bool = True, unreadable: str = "") -> ResumeCheck:
    now = JOB
    for path, value in edits:
        now = with_value(now, path, value)
    return check_resume(JOB, now, trained=trained, unreadable=unreadable)


CASES = [
    # changes, trained, unreadable: verdict, fields that it rests on, the claim
    (asked(), "fits", [], "since this run was last started"),
    (asked(FREE), "fits", [], "since this run was last started"),
    (asked(LOSS), "ask", ["training.loss"], "from here on it would not be the run that was begun"),
    (asked(LOSS, FREE), "ask", ["training.loss"], "from here on it would not be the run that was begun"),
    (asked(RANK), "impossible", ["target.rank"], "its checkpoints do not fit it"),
    (asked(RANK, LOSS, FREE), "impossible", ["target.rank"], "its checkpoints do not fit it"),
    (asked(RANK, trained=False), "ask", ["target.rank"], "from here on it would not be the run that was begun"),
    (
        asked(RANK, LOSS, trained=False),
        "ask",
        ["target.rank", "training.loss"],
        "from here on it would not be the run that was begun",
    ),
    (
        asked(unreadable="torn"),
        "ask",
        [],
        "the run's own job.toml cannot be read (torn), so nobody can tell what has changed",
    ),
    (asked(LOSS, unreadable="torn"), "ask", ["training.loss"], "nobody can tell what has changed"),
    (asked(RANK, unreadable="torn"), "impossible", ["target.rank"], "its checkpoints do not fit it"),
    (check_resume(None, JOB, trained=True), "fits", [], "since this run was last started"),
]


@pytest.mark.parametrize(("case", "verdict", "grounds", "claim"), CASES)
def test_verdicts(case: ResumeCheck, verdict: str, grounds: list[str], claim: str):
    assert (case.verdict, [c.field for c in case.grounds]) == (verdict, grounds)
    assert claim in case.claim and not case.claim.endswith(".")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(case), type=ResumeCheck) == case, "it goes over the wire"
    assert msgspec.to_builtins(case)["learnt"] == case.trained, "the key that the daemon's other versions know"


@pytest.mark.parametrize(("case", "verdict", "grounds", "claim"), CASES)
def test_what_is_refused_and_what_a_yes_helps(case: ResumeCheck, verdict: str, grounds: list[str], claim: str):
    def refused(accepted: str | None) -> str:
        try:
            case.require(accepted, where="t", accept="say yes")
        except UserError as e:
            return str(e)
        return ""

    assert bool(refused(None)) == (verdict != "fits") and bool(refused(case.digest)) == (verdict == "impossible")
    told = refused(None)
    assert not told or (
        told.startswith(f"t: {case.claim}")
        and all(c.text in told for c in case.grounds)
        and ("say yes" in told.lower()) == (verdict == "ask")
        and "\n" not in told
    )
    assert not told or not any(c.text in told for c in case.changes if c not in case.grounds)


def test_a_yes_counts_for_what_was_shown_and_nothing_else():
    shown = asked(LOSS).digest
    asked(LOSS, FREE).require(shown, where="t", accept="say yes")  # what does no harm may change meanwhile
    for other in (asked(("training.loss", "huber")), asked(LOSS, ("job.seed", 7))):
        with pytest.raises(
            UserError,
            match=(
                r"t: its job file has other changes by now than those that were accepted \(.*\)\. Set (it|them) back in"
                r" /j\.toml, or say yes"
            ),
        ):
            other.require(shown, where="t", file="/j.toml", accept="say yes")
    assert asked().digest == asked(FREE).digest != shown
    assert asked(unreadable="torn").digest == asked(LOSS, unreadable="odd").digest == UNSEEN
    # it could be read after all, so it was not this that was accepted
    with pytest.raises(UserError, match="other changes by now"):
        asked(LOSS).require(UNSEEN, where="t", accept="say yes")
    with pytest.raises(UserError, match="nobody can tell"):
        asked(LOSS, unreadable="torn").require(shown, where="t", accept="say yes")


def test_fixes_and_layout():
    assert asked(LOSS).fix(accept="say yes") == "Set it back in the job file, or say yes"
    assert asked(LOSS, ("job.seed", 7)).fix(accept="say yes", file="/j.toml") == "Set them back in /j.toml, or say yes"
    assert (
        asked(RANK, LOSS).fix(accept="say yes") == "Set it back in the job file, or start a new run under another name"
    )
    assert asked(unreadable="torn").fix(accept="go on with --accept-changes") == "Go on with --accept-changes"
    with pytest.raises(UserError) as refused:
        asked(LOSS, ("job.seed", 7)).require(None, where="t", accept="say yes", lines=True)
    assert refused.value.what.endswith(':\n  job.seed: 42 -> 7\n  training.loss: "mse" -> "mae"\n')


def test_what_matters_most_is_shown_first_with_what_it_does():
    case = asked(FREE, LOSS, RANK)
    assert [(c.field, case.mark(c)) for c in case.shown] == [
        ("target.rank", "does not fit the checkpoints"),
        ("training.loss", "breaks exactness"),
        ("training.lr", ""),
    ]
    case = asked(RANK, trained=False)
    assert [case.mark(c) for c in case.shown] == ["breaks exactness"], "nothing was trained that it could not fit"


def test_a_start_is_read_once_and_what_is_merged_is_the_base():
    now = with_value(JOB, "target.start_high", "/other.safetensors")
    for trained, mark in ((True, "has no effect: a start is read when a run begins"), (False, "")):
        case = check_resume(JOB, now, trained=trained)
        assert (case.verdict, [case.mark(c) for c in case.shown]) == ("fits", [mark])
    merged = copied(JOB, [MergePanel(path="/a.safetensors")])
    assert check_resume(JOB, merged, trained=True).verdict == "impossible"
    assert check_resume(merged, JOB, trained=True).verdict == "impossible"
    weaker = copied(JOB, [MergePanel(path="/a.safetensors", strength=0.5)])
    assert check_resume(merged, weaker, trained=True).verdict == "impossible"
    moved = copied(JOB, [MergePanel(path="/b.safetensors")])
    assert check_resume(merged, moved, trained=True).verdict == "ask", "its contents are compared when it is read"


def copied(job: Job, merge: list[MergePanel]) -> Job:
    out = msgspec.convert(msgspec.to_builtins(job), Job)
    out.model.merge = merge
    return out


def test_the_lists_of_fields_agree():
    assert not [f for f in IMPOSSIBLE_TO_CHANGE if is_free(f)] and all(
        is_free(f) for f in (*LIVE_FIELDS, *FREE_TO_CHANGE)
    )
    assert all(c.breaks for c in changes(JOB, with_value(JOB, *RANK)))


def test_the_job_in_a_run_folder(tmp_path: Path):
    assert held_job(tmp_path, tmp_path) == (None, "")
    save_job(with_value(JOB, "datasets[0].path", "clips"), tmp_path / "job.toml")
    held, unreadable = held_job(tmp_path, Path("/base"))
    assert held is not None and held.datasets[0].path == "/base/clips" and not unreadable
    (tmp_path / "job.toml").write_text("[job")
    held, unreadable = held_job(tmp_path, tmp_path)
    assert held is None and re.match("not valid TOML", unreadable)


@pytest.mark.parametrize(
    ("name", "complete", "trained"),
    [
        ("step_000000010", True, True),
        ("step_000000010", False, False),
        ("step_000000010.tmp-7", True, False),
        ("step_000000010.old-7", True, True),
        ("step_000000010.damaged-7", True, False),
    ],
)
def test_only_a_complete_checkpoint_counts(tmp_path: Path, name: str, complete: bool, trained: bool):
    assert not has_checkpoint(tmp_path)
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
    if complete:
        (tmp_path / "checkpoints" / name / "manifest.json").write_text("{}")
    assert has_checkpoint(tmp_path) == trained


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ({"include": ["ffn"]}, ["target.include"]),
        ({"exclude": ["ffn"]}, ["target.exclude"]),
        (
            {"layers": [LayersPanel(match="ffn", rank=8, lr_factor=0.5)]},
            ["target.layers[0].lr_factor", "target.layers[0].match", "target.layers[0].rank"],
        ),
    ],
)
def test_other_layers_do_not_fit_the_checkpoints(target, named):
    found = check_resume(job(), job(target=target), trained=True)
    assert found.verdict == "impossible" and [c.field for c in found.impossible] == named == [
        c.field for c in found.changes
    ]

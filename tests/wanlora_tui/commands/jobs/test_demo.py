"""The demo: its run names, and what is told at its end. All of it, on the real trainer: tests/test_end_to_end.py."""

from pathlib import Path

import pytest

from daemon.wire.protocol import JobRecord
from presets.errors import UserError
from presets.job.toml_file import load_job
from presets.runs.run_view import RunView, apply_event
from tests.helpers.interface.harness import write_job
from tests.helpers.interface.runs import Tape
from wanlora_tui.commands.jobs.demo import free_job, prepare, tell_end


def test_a_name_in_use_gets_a_number_and_the_job_stays_the_same(tmp_path: Path):
    job = write_job(tmp_path, "demo")
    assert free_job(job, set()) == job
    (tmp_path / "runs/demo").mkdir(parents=True)
    second = free_job(job, set())
    assert load_job(second).job.name == "demo-2" and second.parent == job.parent
    (tmp_path / "runs/demo-2").mkdir()
    third = free_job(job, {"demo-3"})
    assert load_job(third).job.name == "demo-4" and load_job(third).training == load_job(job).training


@pytest.mark.process
def test_a_place_that_cannot_be_written_is_one_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the demo could not be prepared") as caught:
        prepare(tmp_path / "file" / "demo")
    assert (
        "Traceback" not in str(caught.value)
        and str(caught.value).count("Choose another folder") == 1
        and "--out" not in str(caught.value)
    )


@pytest.mark.parametrize(
    ("last", "code", "said"),
    [({"cause": "out of memory", "next": "less"}, 1, "a: failed"), (None, 0, "")],
)
def test_what_came_of_it_is_told_by_its_last_word_although_its_trainer_is_not_gone_yet(
    last: dict[str, str] | None, code: int, said: str, capsys: pytest.CaptureFixture[str]
):
    tape = Tape()
    tape.start()
    tape.step(1)
    if last:
        tape.add("failed", **last)
    view = RunView()
    for event in tape.events:
        apply_event(view, event)
    record = JobRecord(
        id=1, name="a", job_path="/j", out="/r", gpus=[0], state="running", pid=7, started_at=1_790_000_000.0, attempt=1
    )
    assert tell_end(record, view) == code
    assert said in capsys.readouterr().err

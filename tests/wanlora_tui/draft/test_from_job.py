"""A draft made of a job: nothing of the job is lost on the way, whatever is recommended."""

from pathlib import Path

import pytest

from presets.errors import UserError
from presets.job.schema import DatasetPanel, Job, JobPanel, LayersPanel, MergePanel, PromptPanel
from presets.job.toml_file import absolute_paths, dump_job, save_job, with_value
from presets.machine.machine import Machine, read_machine
from tests.helpers.interface.harness import write_job
from wanlora_tui.draft.draft_store import DraftStore
from wanlora_tui.draft.from_job import draft_of, job_at, job_of_run, next_name
from wanlora_tui.draft.job_draft import WizardState


@pytest.fixture(scope="module")
def machine() -> Machine:
    return read_machine(Path.cwd())


def a_job(folder: Path) -> Job:
    job = Job(
        job=JobPanel(name="orbit_v1", kind="style", trigger="frung"),
        datasets=[DatasetPanel(path=str(folder / "a"), num_frames=33), DatasetPanel(path=str(folder / "b"), repeats=3)],
    )
    for field, value in {
        "training.lr": 3e-5,
        "training.steps": 777,
        "target.alpha": 4,
        "multistage.high.lr": 2e-5,
        "sample.every": 111,
    }.items():
        job = with_value(job, field, value)
    job.sample.prompts = [PromptPanel(prompt="a frung", ctrl_img=str(folder / "c.png"), seed=7)]
    job.model.merge = [MergePanel(path=str(folder / "m.safetensors"), strength=0.5)]
    job.target.layers = [LayersPanel(match="blocks.0-9", rank=8)]
    return absolute_paths(job, folder)


def state_of(job: Job, cwd: Path, machine: Machine) -> WizardState:
    state = WizardState(draft_of(job, name="orbit_v2", copy_of="orbit_v1"), cwd)
    state.machine = machine
    state.refresh()
    return state


def test_the_wizard_s_job_is_the_one_that_was_copied_but_for_its_name(tmp_path: Path, machine: Machine):
    job = a_job(tmp_path)
    copied = state_of(job, tmp_path, machine).job()
    assert dump_job(copied) == dump_job(with_value(job, "job.name", "orbit_v2"))


def test_another_kind_or_machine_changes_none_of_its_values(tmp_path: Path, machine: Machine):
    state = state_of(a_job(tmp_path), tmp_path, machine)
    state.set_kind("character")
    assert dump_job(state.job()) == dump_job(
        with_value(with_value(a_job(tmp_path), "job.name", "orbit_v2"), "job.kind", "character")
    )


def test_one_value_is_changed_and_the_rest_stays(tmp_path: Path, machine: Machine):
    state = state_of(a_job(tmp_path), tmp_path, machine)
    state.set_value("training.lr", 1.5e-5)
    assert state.job().training.lr == 1.5e-5 and state.job().training.steps == 777


def test_the_draft_is_kept_like_any_other(tmp_path: Path):
    store = DraftStore(tmp_path / "draft.json")
    draft = draft_of(a_job(tmp_path), name="orbit_v2", copy_of="orbit_v1", folder=tmp_path)
    store.save(draft)
    assert store.load() == draft and draft.job_path == str(tmp_path / "orbit_v2.toml")


def test_the_job_of_a_run_whose_job_file_is_gone_lies_in_its_run_folder(tmp_path: Path):
    file = write_job(tmp_path)
    run = tmp_path / "runs/orbit_v1"
    run.mkdir(parents=True)
    save_job(with_value(job_at(file), "training.steps", 99), run / "job.toml")
    file.unlink()
    found = job_of_run(run, file)
    assert found.training.steps == 99 and found.datasets[0].path == str(tmp_path / "clips")
    assert job_at(run).training.steps == 99


def test_one_that_has_not_begun_is_its_job_file(tmp_path: Path):
    assert job_of_run(tmp_path / "runs/orbit_v1", write_job(tmp_path)).job.name == "orbit_v1"
    with pytest.raises(UserError, match="neither the run folder nor the job file"):
        job_of_run(tmp_path / "runs/gone", tmp_path / "gone.toml")


@pytest.mark.parametrize(
    ("name", "taken", "made"),
    [
        ("orbit_v1", [], "orbit_v2"),
        ("orbit_v1", ["orbit_v2", "orbit_v3"], "orbit_v4"),
        ("orbit", [], "orbit_v2"),
        ("orbit_v9", [], "orbit_v10"),
        ("v1", [], "v1_v2"),
    ],
)
def test_a_copy_has_a_name_of_its_own(name: str, taken: list[str], made: str):
    assert next_name(name, taken) == made


def test_the_longest_name_has_room_for_its_number():
    made = next_name("a" * 64, [])
    assert len(made) <= 64 and made.endswith("_v2")

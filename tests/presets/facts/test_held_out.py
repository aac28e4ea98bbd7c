"""Which clips are held out: by what they hold, whatever they are called and wherever they lie."""

import shutil
from pathlib import Path

import pytest

from presets.clips.clip_facts import scan_dataset
from presets.facts.gather import gather
from presets.facts.held_out import MOST, hold_out, validates, wanted
from presets.job.schema import Job
from presets.planner.workload import measurements, workload_of
from presets.rules.check import check_job
from tests.helpers.facts import job
from tests.helpers.videos import write_image


def folder(at: Path, names: dict[str, int]) -> Path:
    """Images by name, each with the content of its number."""
    at.mkdir(parents=True, exist_ok=True)
    for name, number in names.items():
        write_image(at / name, 64, 48).write_bytes((at / name).read_bytes() + bytes([number]))
        (at / name).with_suffix(".txt").write_text("a look")
    return at


def split(made: Job, base: Path) -> tuple[list[list[str]], list[str]]:
    """The names that train, by dataset, and those that do not."""
    datasets = [scan_dataset(panel, i, base) for i, panel in enumerate(made.datasets)]
    train, held = hold_out(made, datasets)
    return [[Path(c.path).name for c in d.clips] for d in train], [Path(h.clip.path).name for h in held.clips]


def fraction(part: float, *datasets: dict) -> Job:
    return job(validation={"fraction": part}, datasets=[{"path": "a", "num_frames": 1}, *datasets])


def test_the_same_ones_under_other_names_in_another_place(tmp_path):
    names = {f"{i}.png": i for i in range(10)}
    folder(tmp_path / "one" / "a", names)
    folder(tmp_path / "two" / "a", {f"renamed{9 - i}.png": i for i in range(10)})
    ((train,), held), (_, others) = (split(fraction(0.3), tmp_path / at) for at in ("one", "two"))
    assert len(held) == 3 and sorted([*train, *held]) == sorted(names)
    assert {names[name] for name in held} == {9 - int(name[7]) for name in others}
    assert split(fraction(0.3), tmp_path / "one") == ([train], held)


def test_a_clip_more_moves_no_more_than_one_in_or_out(tmp_path):
    names = {f"{i}.png": i for i in range(10)}
    folder(tmp_path / "a", names)
    _, before = split(fraction(0.3), tmp_path)
    folder(tmp_path / "a", {"10.png": 10})
    _, after = split(fraction(0.3), tmp_path)
    assert len(set(before) - set(after)) <= 1


def test_a_clip_with_more_copies_than_are_measured_trains(tmp_path):
    folder(tmp_path / "a", {f"{i:02d}.png": i % 2 for i in range(2 * MOST + 2)} | {"x.png": 7, "y.png": 8})
    _, held = split(fraction(0.4), tmp_path)
    assert set(held) <= {"x.png", "y.png"} and held


def test_copies_go_together_and_no_dataset_loses_its_last_clip(tmp_path):
    folder(tmp_path / "a", {f"{i}.png": i // 2 for i in range(8)})
    for i in range(0, 8, 2):
        shutil.copy(tmp_path / "a" / f"{i}.png", tmp_path / "a" / f"{i + 1}.png")
    folder(tmp_path / "b", {"alone.png": 99})
    for part in (0.12, 0.25, 0.4, 0.49):
        (a, b), held = split(fraction(part, {"path": "b", "num_frames": 1}), tmp_path)
        assert b == ["alone.png"] and held
        assert not {int(n[0]) // 2 for n in held} & {int(n[0]) // 2 for n in a}


@pytest.mark.parametrize("names", [{"0.png": 1, "1.png": 1, "2.png": 1, "3.png": 1}, {"alone.png": 1}])
def test_where_none_can_be_held_out_that_is_an_error(tmp_path, names):
    """All clips are copies of one, or each is the only one of its dataset: nothing would ever be measured."""
    folder(tmp_path / "a", names)
    folder(tmp_path / "b", {"b.png": 2} if len(names) == 1 else {"b.png": 1})
    folder(tmp_path / "c", {"c.png": 3} if len(names) == 1 else {"c.png": 1})
    made = fraction(0.4, {"path": "b", "num_frames": 1}, {"path": "c", "num_frames": 1})
    facts = gather(made, tmp_path, out=tmp_path / "runs", scenes=False)
    assert facts.held_out is not None and not facts.held_out.clips
    [found] = [f for f in check_job(made, facts) if f.code == "validation-nothing"]
    assert found.severity == "error" and "none of the" in found.message and found.set == {"validation.fraction": 0.0}


def test_regularization_trains_and_what_is_left_out_stays_out(tmp_path):
    folder(tmp_path / "a", {f"{i}.png": i for i in range(6)})
    folder(tmp_path / "b", {f"r{i}.png": 20 + i for i in range(6)})
    made = job(
        validation={"fraction": 0.4},
        datasets=[
            {"path": "a", "num_frames": 1, "exclude": ["3.png"]},
            {"path": "b", "num_frames": 1, "regularization": True},
        ],
    )
    (a, b), held = split(made, tmp_path)
    assert len(b) == 6 and len(held) == 2 and "3.png" not in [*a, *held] and (tmp_path / "a" / "3.png").exists()


@pytest.mark.parametrize(
    ("part", "clips", "count"),
    [(0.1, 10, 1), (0.1, 9, 0), (0.3, 10, 3), (0.29, 100, 29), (0.4, 1000, MOST), (0.0, 9, 0)],
)
def test_whole_clips_are_held_out_and_not_too_many(part, clips, count):
    assert wanted(part, clips) == count


def test_the_folder_of_its_own_is_looked_at_as_the_first_dataset_is(tmp_path):
    folder(tmp_path / "a", {f"{i}.png": i for i in range(4)})
    folder(tmp_path / "held", {"x.png": 50})
    (tmp_path / "held" / "broken.png").write_text("no picture")
    made = job(validation={"path": "held"}, datasets=[{"path": "a", "num_frames": 1, "repeats": 3}])
    found = gather(made, tmp_path, out=tmp_path / "runs")
    assert validates(made) and len(found.datasets) == 1 and len(found.datasets[0].clips) == 4
    [one] = found.held_out.clips
    assert Path(one.clip.path).name == "x.png" and (one.dataset, one.panel.repeats) == (1, 1)
    assert [p.field for p in found.held_out.problems] == [str(tmp_path / "held" / "broken.png")]
    gone = gather(job(validation={"path": "nowhere"}, datasets=[{"path": "a"}]), tmp_path, out=tmp_path)
    assert [(p.code, p.field) for p in gone.held_out.problems] == [("dataset-missing", "validation.path")]


def test_without_validation_nothing_changes(tmp_path):
    folder(tmp_path / "a", {"0.png": 0})
    found = gather(job(datasets=[{"path": "a", "num_frames": 1}]), tmp_path, out=tmp_path)
    assert found.held_out is None and len(found.datasets[0].clips) == 1
    assert workload_of(job()).validation is None


@pytest.mark.parametrize(("steps", "every", "count"), [(4, 2, 3), (5, 2, 4), (2000, 250, 9), (1, 1, 2), (10, 100, 2)])
def test_how_often_it_is_measured(steps, every, count):
    made = job(training={"steps": steps}, validation={"every": every})
    assert measurements(made) == count == len({0, steps, *range(0, steps, every)})


def test_what_it_takes_is_planned():
    made = job(validation={"path": "held", "bins": 3})
    assert workload_of(made).validation.passes == 6
    assert workload_of(job(validation={"path": "h"}, multistage={"low_noise": False})).validation.passes == 4

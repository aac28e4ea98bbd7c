"""The checkpoints to go back to: those that are whole, with the losses and previews of their step."""

import json
from pathlib import Path

import pytest

from presets.runs.checkpoints import MEAN_OF, checkpoints_of
from presets.runs.run_view import PreviewSet, RunView, StepPoint


def stored(run: Path, step: int, manifest: str | None = None) -> None:
    folder = run / f"checkpoints/step_{step:09d}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(
        manifest
        or json.dumps({"step": step, "files": {"a": {"bytes": 5, "sha256": ""}, "b": {"bytes": 7, "sha256": ""}}})
    )


def test_whole_ones_with_their_losses_and_previews(tmp_path: Path):
    for step in (100, 50):
        stored(tmp_path, step)
    view = RunView(
        losses={"high_noise": [StepPoint(s, float(s)) for s in range(1, 101)], "low_noise": [StepPoint(80, 0.5)]},
        samples=[PreviewSet(100, "samples/x/00.mp4", "", "", 1), PreviewSet(50, "y", "", "", 1)],
    )
    old, new = checkpoints_of(tmp_path, view)
    assert (old.step, old.size, old.path, old.previews) == (50, 12, "checkpoints/step_000000050", ["y"])
    assert old.losses == {"high_noise": pytest.approx(sum(range(51 - MEAN_OF, 51)) / MEAN_OF)}
    assert new.losses == {
        "high_noise": pytest.approx(sum(range(101 - MEAN_OF, 101)) / MEAN_OF),
        "low_noise": 0.5,
    } and new.previews == ["samples/x/00.mp4"]


@pytest.mark.parametrize(
    "manifest", ["", "{", "[]", '{"files": 3}', '{"files": {"a": {}}}', '{"files": {"a": {"bytes": "many"}}}']
)
def test_half_written_and_damaged_ones_are_left_out(tmp_path: Path, manifest: str):
    stored(tmp_path, 10, manifest or " ")
    (tmp_path / "checkpoints/step_000000020").mkdir()
    stored(tmp_path, 30)
    (tmp_path / "checkpoints/step_000000040.tmp-7").mkdir()
    assert [c.step for c in checkpoints_of(tmp_path, RunView())] == [30]


def test_a_run_without_any(tmp_path: Path):
    assert checkpoints_of(tmp_path, RunView()) == []

"""Held-out loss in the page, and the checkpoint that it makes the best."""

from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from presets.report.best import best_step, ranked_checkpoints
from presets.report.measures import Camera, Film, Judged, Look, Motion, Preview, Track, scores
from presets.report.page import page
from presets.report.run_reader import read_run
from presets.runs.checkpoints import best_text
from presets.runs.ranking import Measure
from tests.helpers.drawn_films import camera, square, write_run


def measure(step: int, high: list[float], low: list[float]) -> Measure:
    return Measure(step=step, of="the same", losses={"high_noise": high, "low_noise": low})


def run_with(tmp_path: Path) -> Path:
    clips = {"c": (camera(right=2), "a wall")}
    run = write_run(tmp_path / "pan", clips, {s: [square(right=3)] for s in (0, 10, 20, 30)}, ["a wall"])
    for step in (10, 20, 30):
        for expert in ("high_noise", "low_noise"):
            (run / f"pan_{step:09d}_{expert}.safetensors").write_bytes(b"")
    return run


def text_of(html: str) -> str:
    texts: list[str] = []

    class Reader(HTMLParser):
        def handle_data(self, data: str) -> None:
            texts.append(data)

    Reader().feed(html)
    return "".join(texts)


def test_the_best_is_named_with_its_reason_its_files_and_its_mark(tmp_path):
    stored = read_run(run_with(tmp_path))
    without = page(stored)
    assert "Held-out loss" not in text_of(without) and 'class="mark"' not in without
    level = [0.2, 0.25, 0.3, 0.22]
    by_step = {0: 0.1, 10: 0.0, 20: 0.05, 30: 0.09}
    stored.view.measured += [
        measure(s, [v + worse + 0.001 * i for i, v in enumerate(level)], [v + worse for v in level])
        for s, worse in by_step.items()
    ]
    html = page(stored)
    said = text_of(html)
    assert "Step 10: it has the lowest held-out loss; later ones overfit" in said
    assert "pan_000000010_high_noise.safetensors" in said and "step 10, seed 42, the best" in said
    assert html.count('class="mark"') == 4 and "step 20" in said and html.count("<svg") == 4
    assert html.count("<rect") == 2 * 4, "a dot for each measurement"
    assert page(stored) == html


def test_where_the_files_of_the_best_are_not_here_the_last_one_is_not_said_to_be_all_there_is_to_know(tmp_path):
    run = run_with(tmp_path)
    for file in run.glob("pan_0*.safetensors"):
        file.unlink()
    stored = read_run(run)
    assert "nothing was held out" in text_of(page(stored))
    stored.view.measured += [measure(10, [0.1, 0.2], [0.1, 0.2])]
    said = text_of(page(stored))
    assert "nothing was held out" not in said
    assert "it is the last one, and of the steps whose held-out loss was measured no LoRA files are here" in said


def preview(step: int, *, speed: float | None, direction: float | None, sharp: float = 1.0, path: float | None = None):
    motion = Motion(
        speed=0.1,
        directions=[0.125] * 8,
        camera=Camera(right=0, down=0, zoom=0, roll=0),
        subject_directions=[0.125] * 8,
        subject_speed=0,
        subject_share=0,
    )
    track = None if path is None else Track(path=path, seen=1, size=1, shape=1)
    film = Film(frames=9, motion=motion, look=Look(colours=0, sharpness=sharp, flicker=0), track=track)
    name = f"samples/step_{step:09d}/00.mp4"
    return Preview(
        step=step,
        path=name,
        prompt="",
        number=0,
        has_trigger=True,
        film=film,
        speed=speed,
        direction=direction,
        changed=None,
    )


def test_what_is_near_the_clips_scores_higher():
    def score(**what) -> float:
        return scores(Judged(name="x", previews=[preview(10, **what)]))[10]

    assert score(speed=1, direction=1) == 1 and score(speed=0.5, direction=1) == score(speed=2, direction=1) == 0.5
    assert score(speed=1, direction=0.9) == pytest.approx(0.9) and score(speed=0, direction=0.5) == 0
    assert score(speed=1, direction=1, sharp=0.5) == score(speed=1, direction=1, sharp=2) == 0.5
    assert score(speed=None, direction=None, path=0.1) == pytest.approx(0.8)
    assert scores(Judged(name="x", previews=[preview(10, speed=None, direction=None)])) == {}


def test_measures_of_previews_decide_between_those_that_are_alike(tmp_path):
    run = run_with(tmp_path)
    judged = Judged(name="pan", previews=[preview(s, speed=1 - s / 100, direction=1) for s in (10, 20, 30)])
    stored = read_run(run)
    wobble = {0: [0.5] * 4, 10: [0.3, 0.2, 0.3, 0.2], 20: [0.2, 0.3, 0.2, 0.29], 30: [0.9] * 4}
    stored.view.measured += [measure(s, losses, losses) for s, losses in wobble.items()]
    assert "Step 20: it has the lowest held-out loss" in text_of(page(stored))
    (run / "judge.json").write_bytes(msgspec.json.encode(judged))
    assert "Step 10: it is chosen by its previews" in (said := text_of(page(stored)))
    assert "lowest held-out loss" not in said, "which it has not"
    there = ranked_checkpoints(run, stored.view)
    assert best_text(there).startswith("best: step 10; by its previews"), "as the page says"
    assert best_step(run, stored.view) == 10
    (run / "judge.json").write_text("{")
    assert best_step(run, stored.view) == 20
    assert best_text(ranked_checkpoints(run, stored.view)).startswith("best: step 20")

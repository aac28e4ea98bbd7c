"""A whole run measured: previews against the clips as they train."""

from fractions import Fraction
from pathlib import Path

import av
import msgspec
import numpy as np
import pytest

from engine.judge.measure import measure, read_frames
from presets.clips.clip_facts import scan_dataset
from presets.errors import UserError
from presets.facts.held_out import hold_out
from presets.job.toml_file import with_value
from presets.report.measures import Judged, read_measures, summaries
from presets.report.run_reader import read_run
from tests.helpers.drawn_films import camera, square, toy, write_run

pytest.importorskip("cv2", reason="the extra `judge` is not installed")


def judge(folder) -> Judged:
    said: list[tuple[int, int]] = []
    found = measure(read_run(folder), lambda done, of: said.append((done, of)))
    assert said == [(i, said[-1][1]) for i in range(said[-1][1])]
    return found


def test_previews_at_half_the_speed_of_the_clips_and_the_other_way(tmp_path):
    clips = {f"c{i}": (camera(right=4, down=i), "a wall") for i in range(2)}
    previews = {0: [camera(), camera()], 10: [camera(right=2), camera(right=-4)]}
    run = write_run(tmp_path / "pan", clips, previews, ["sks, a wall", "a wall"], trigger="sks")
    found = judge(run)
    assert [(p.step, p.number, p.has_trigger) for p in found.previews] == [
        (0, 0, True),
        (0, 1, False),
        (10, 0, True),
        (10, 1, False),
    ]
    still, _, half, wrong = found.previews
    assert still.speed < 0.05 and still.direction is None and still.changed is None
    assert half.speed == pytest.approx(0.5, abs=0.06) and half.direction > 0.9
    assert wrong.speed == pytest.approx(1, abs=0.1) and wrong.direction < 0.1
    assert half.changed > 0.05 and found.notes == []
    assert "step 10: previews move 0.7" in summaries(found)[1] and "off the base's own" in summaries(found)[1]


def test_the_clips_are_looked_at_as_they_train(tmp_path):
    """Of clips with 32 frames a second, training takes every second one: they move twice as far from frame to frame."""
    clips = {"c": (camera(right=1, length=32), "a wall")}
    run = write_run(tmp_path / "fast", clips, {10: [camera(right=2)]}, ["a wall"], fps=32)
    [preview] = judge(run).previews
    assert preview.speed == pytest.approx(1, abs=0.08)


def test_what_was_held_out_is_nothing_that_it_trained_on(tmp_path):
    clips = {name: (camera(right=2 + i), "a wall") for i, name in enumerate("abcd")}
    run = write_run(tmp_path / "pan", clips, {10: [camera(right=2)]}, ["a wall"])
    every = judge(run).clips
    assert len(every) == 4
    stored = read_run(run)
    job = with_value(stored.job, "validation.fraction", 0.25)
    [one] = hold_out(job, [scan_dataset(job.datasets[0], 0, run)])[1].clips
    found = measure(stored._replace(job=job), lambda done, of: None)
    kept = [film for name, film in zip("abcd", every, strict=True) if Path(one.clip.path).stem != name]
    assert found.clips == kept


def test_a_preview_whose_size_changes_does_not_decode(tmp_path):
    film = tmp_path / "a.avi"
    with av.open(str(film), "w") as container:
        stream = container.add_stream("mjpeg", rate=16, width=64, height=48, pix_fmt="yuvj420p")
        for width in (64, 32):
            codec = av.CodecContext.create("mjpeg", "w")
            codec.width, codec.height, codec.pix_fmt, codec.time_base = width, 48, "yuvj420p", Fraction(1, 16)
            frame = av.VideoFrame.from_ndarray(np.zeros((48, width, 3), np.uint8), format="rgb24")
            for packet in codec.encode(frame.reformat(format="yuvj420p")):
                packet.stream, packet.pts, packet.dts = stream, width == 32, width == 32
                container.mux(packet)
    assert read_frames(film) is None


def test_regularization_is_nothing_to_learn_from(tmp_path):
    clips, kept = {"c": (camera(right=2), "a wall")}, {"r": (camera(right=-8), "a hall")}
    run = write_run(tmp_path / "pan", clips, {10: [camera(right=2)]}, ["a wall"], regularization=kept)
    found = judge(run)
    assert len(found.clips) == 1 and found.previews[0].speed == pytest.approx(1, abs=0.05)


def test_drawn_objects_are_followed_too(tmp_path):
    captioned = [(film, "a red ball circles") for film in toy("circles", count=2)]
    clips = {f"c{i}": pair for i, pair in enumerate(captioned)}
    previews = {0: toy("stays", colour="blue", seed=4), 10: toy("circles", colour="blue", seed=4)}
    run = write_run(tmp_path / "toys", clips, previews, ["a blue ball circles"], frames=17)
    found = judge(run)
    before, after = found.previews
    assert before.film.track.path > 5 * after.film.track.path and after.film.track.path < 0.03
    assert all(film.track.path < 0.03 for film in found.clips)
    assert read_measures(run) is None
    (run / "judge.json").write_bytes(msgspec.json.encode(found))
    assert read_measures(run) == found


def test_what_cannot_be_measured_is_said(tmp_path):
    clips = {"c": (square(right=3), "a wall")}
    run = write_run(tmp_path / "a", clips, {}, ["a wall"])
    with pytest.raises(UserError, match="there are no previews yet"):
        judge(run)
    run = write_run(tmp_path / "b", clips, {10: [square(right=3), square(right=1)]}, ["a wall", "a hall"])
    (run / "samples/step_000000010/00.mp4").unlink()
    (run / "samples/step_000000010/01.mp4").write_bytes(b"no film")
    with pytest.raises(UserError, match="none of its previews decodes"):
        judge(run)
    (run / "samples/step_000000010/01.mp4").unlink()
    with pytest.raises(UserError, match="none of its 2 previews is here") as missing:
        judge(run)
    assert missing.value.fix.endswith(f": wanlora fetch {read_run(run).job.job.name} --what run")
    run = write_run(tmp_path / "c", clips, {10: [square(right=3)] * 2}, ["a wall", "a hall"])
    (run / "samples/step_000000010/00.mp4").write_bytes(b"no film")
    assert judge(run).notes == [
        "samples/step_000000010/00.mp4 does not decode",
        "there are no previews from before the first step, so no drift from the base is measured",
    ]
    (tmp_path / "clips").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="the clips that it trained on are not there"):
        judge(run)
    with pytest.raises(UserError, match="there is no such run folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no run lies here"):
        read_run(tmp_path / "moved")


def test_a_preview_that_an_event_places_outside_is_not_read(tmp_path):
    run = write_run(tmp_path / "a", {"c": (square(right=3), "a wall")}, {10: [square(right=3)]}, ["a wall"])
    events = (run / "events.jsonl").read_text()
    (run / "events.jsonl").write_text(events.replace("samples/step_000000010/00.mp4", "../clips/c.mp4"))
    with pytest.raises(UserError, match="none of its 1 previews is here"):
        judge(run)


def test_measuring_twice_gives_the_same(tmp_path):
    clips = {"c": (square(right=3), "a wall")}
    run = write_run(tmp_path / "a", clips, {0: [camera()], 10: [square(right=3)]}, ["a wall"])
    one, two = judge(run), judge(run)
    assert msgspec.json.encode(one) == msgspec.json.encode(two)
    assert np.isfinite(one.previews[1].film.look.sharpness)

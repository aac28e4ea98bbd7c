"""The held-out loss on the tiny base: what is measured and that training does not notice, bit for bit."""

import json
import math
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace

import msgspec
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from engine.adapters import lora
from engine.data.frames import decode
from engine.encode.latents import encode_pair, pixels
from engine.executor.token_split import TokenSplit
from engine.parallel.parts import ALONE, Part
from engine.run import run_job
from engine.runfolder.resume import read_history
from engine.system import fault_injection
from engine.system.keyed_random import keyed_rng
from engine.training import validation
from engine.training.context import Run
from engine.training.optimizer import Ema
from engine.training.saved_loras import best_of, lora_file, write_lora
from engine.training.validation import (
    Told,
    cells_of,
    compared_with,
    compiled_as_trained,
    draw_of,
    edges_of,
    encoded,
    event_of,
    joined,
    take_part,
    unmeasured,
    validate,
)
from presets.job.toml_file import load_job, save_job, with_value
from presets.runs.event_data import ValidationData
from presets.runs.ranking import Kept, Measure
from presets.runs.run_view import RunView, apply_event
from tests.helpers.jobs import clip, events, of_kind, write_job
from tests.helpers.training.bench import Bench

HELD = {"fraction": 0.5 - 0.01, "every": 2, "bins": 2}


def write(folder: Path, base: Path, **more) -> Path:
    usual = {"prompts": 0, "clips": 4, "steps": 4, "save": {"every": 2, "keep": 2}, "dataset": {"num_frames": 1}}
    return write_job(folder, base, **usual | more)


def train(job: Path, *, resume: bool = False) -> Path:
    assert run_job(job, None, resume=resume, workers=0, device="cpu") == 0
    return job.parent / "runs" / "t"


def told(run: Path) -> list[dict]:
    return [{k: v for k, v in data.items() if k != "seconds"} for data in of_kind(run, "validation")]


def trained_bits(run: Path) -> dict[str, torch.Tensor]:
    """Of the final LoRAs and of the newest checkpoint."""
    files = [
        *run.glob("t_*_noise.safetensors"),
        *sorted((run / "checkpoints").glob("step_*"))[-1].glob("*.safetensors"),
    ]
    assert len(files) > 4
    return {f"{file.name}.{name}": t for file in files for name, t in load_file(file).items()}


def assert_same_bits(one: Path, other: Path) -> None:
    a, b = trained_bits(one), trained_bits(other)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    losses = [[(d["step"], d["loss"], d["clips"]) for d in of_kind(run, "step")] for run in (one, other)]
    assert losses[0] == losses[1]


@pytest.fixture(scope="module")
def held(tiny, tmp_path_factory) -> Path:
    """Of four clips one trains not, and its loss is measured; with caption dropout, flips and a running average."""
    job = write(
        tmp_path_factory.mktemp("held"),
        tiny,
        validation=HELD,
        ema=True,
        dataset={"num_frames": 1, "flip_x": True, "caption_dropout": 0.5},
    )
    return train(job)


def held_clips(run: Path) -> list[str]:
    return told(run)[0]["clips"]


def test_what_is_held_out_never_trains_and_the_rest_does(held):
    trained = {clip.rpartition("@")[0] for data in of_kind(held, "step") for clip in data["clips"]}
    assert len(held_clips(held)) == 1 and not trained & set(held_clips(held))
    assert trained | set(held_clips(held)) == {f"0/{i}.mp4" for i in range(4)}


def test_it_is_measured_before_the_first_step_every_so_often_and_at_the_end(held):
    assert [data["step"] for data in told(held)] == [0, 2, 4]
    kinds = [e.kind for e in events(held) if e.kind in ("step", "validation", "checkpoint", "done")]
    turn = ["step", "step", "checkpoint", "validation"]
    assert kinds == ["validation", *turn, *turn, "done"]
    for data in told(held):
        assert set(data["experts"]) == {"high_noise", "low_noise"}
        for expert, found in data["experts"].items():
            assert found["edges"] == pytest.approx([0.9, 0.95, 1.0] if expert == "high_noise" else [0, 0.45, 0.9])
            assert len(found["bins"]) == 2 and found["loss"] == pytest.approx(fmean(found["bins"]))


def test_training_does_not_notice(tiny, tmp_path, held):
    """The same bits as of a job that leaves the same clips out and measures nothing."""
    out = [name.removeprefix("0/") for name in held_clips(held)]
    plain = {"num_frames": 1, "flip_x": True, "caption_dropout": 0.5, "exclude": out}
    assert_same_bits(train(write(tmp_path, tiny, ema=True, dataset=plain)), held)


def test_a_folder_of_its_own_leaves_every_clip_to_training(tiny, tmp_path):
    own = tmp_path / "a" / "held"
    own.mkdir(parents=True)
    shutil.copy(clip(7), own / "other.mp4")
    (own / "other.txt").write_text("orbit of something else")
    measured = train(write(tmp_path / "a", tiny, clips=2, validation={"path": "held", "every": 2, "bins": 1}))
    assert held_clips(measured) == ["1/other.mp4"]
    assert_same_bits(measured, train(write(tmp_path / "b", tiny, clips=2)))


@pytest.mark.thorough  # test_faults compares measurements too
def test_resumed_it_is_the_same_run(tiny, tmp_path, held):
    job = write(
        tmp_path,
        tiny,
        validation=HELD,
        ema=True,
        dataset={"num_frames": 1, "flip_x": True, "caption_dropout": 0.5},
    )
    fault_injection.arm(["raise:validation.before-event:2"])
    assert run_job(job, None, resume=False, workers=0, device="cpu") == 1
    again = train(job, resume=True)
    assert told(again) == told(held)
    assert_same_bits(again, held)
    assert of_kind(again, "done")[0]["best"] == of_kind(held, "done")[0]["best"]


@pytest.fixture(scope="module")
def bench(tiny, tmp_path_factory) -> Bench:
    """Two clips train and two are held out, one of them under a mask."""
    folder = tmp_path_factory.mktemp("bench")
    path = write(folder, tiny, clips=2, ema=True, loss="huber", validation={"path": "held", "bins": 3, "every": 2})
    (folder / "held").mkdir()
    for i in (5, 6):
        shutil.copy(clip(i), folder / "held" / f"{i}.mp4")
        (folder / "held" / f"{i}.txt").write_text(f"held-out {i}")
    return Bench(path)


def plain_loop(run: Run, expert: str) -> dict[str, list[float]]:
    """The same numbers without the module under test: clip by clip, bin by bin."""
    out = {}
    for item in run.held_out:
        frames = decode(draw_of(run, item).request)
        x0, conditioning = encode_pair(run.encoder, pixels(frames[None], device=torch.device("cpu")))
        low, high = (run.base.boundary, 1.0) if expert == "high_noise" else (0.0, run.base.boundary)
        losses = []
        for i in range(3):
            key = 42, "validation-noise", expert, item.id, i
            noise = torch.from_numpy(keyed_rng(*key).standard_normal(tuple(x0.shape[1:]), dtype="float32"))[None]
            u = keyed_rng(42, "validation-timestep", expert, item.id, i).random()
            sigma = low + (high - low) * (i + u) / 3
            x = torch.cat([(1 - sigma) * x0 + sigma * noise, conditioning], dim=1)
            t, text = torch.tensor([1000 * sigma], dtype=torch.float32), run.text([item.caption])
            y = run.experts.executors[expert].predict(x, t, text)
            losses.append(float(torch.nn.functional.huber_loss(y, noise - x0)))
        out[item.id.rpartition("@")[0]] = losses
    return out


def measure(run: Run) -> validation.Losses:
    return joined(run, [cells_of(run, 0)])


def trained_values(run: Run) -> Run:
    return replace(run, job=with_value(run.job, "save.ema", False))


def test_bins_and_pairs_are_those_of_a_plain_loop(bench):
    run = trained_values(bench.run)
    losses = measure(run)
    first = event_of(run, 0, losses)
    for expert in run.learners:
        expected = plain_loop(run, expert)
        assert losses[expert].keys() == expected.keys() and len(expected) == 2
        for name, bins in expected.items():
            assert losses[expert][name] == pytest.approx(bins, rel=1e-5)
        told = first["experts"][expert]
        assert told["bins"] == pytest.approx([fmean(bins) for bins in zip(*expected.values(), strict=True)], rel=1e-5)
        means = [fmean(expected[name]) for name in first["clips"]]
        assert told["clips"] == pytest.approx(means, rel=1e-5) and told["loss"] == pytest.approx(fmean(means), rel=1e-5)
        assert told["error"] == pytest.approx(stdev(means) / math.sqrt(2), rel=1e-3)
        assert "first" not in told
        for i, (low, high) in enumerate(zip(told["edges"], told["edges"][1:], strict=False)):
            assert low < high and told["edges"] == edges_of(run, expert) and i < 3


def test_measured_again_it_is_the_same_and_later_ones_are_paired_with_the_first_and_the_best(bench):
    run = trained_values(bench.run)
    validate(run, 0)
    one = run.log.history.measured[0]
    for learner in run.learners.values():
        for parameter in learner.parameters.values():
            parameter.data.mul_(2)
    try:
        validate(run, 2)
    finally:
        for learner in run.learners.values():
            for parameter in learner.parameters.values():
                parameter.data.div_(2)
    validate(run, 4)
    other, again = run.log.history.measured[2], run.log.history.measured[4]
    assert again.losses == one.losses and other.losses != one.losses
    told = [e.data for e in events(run.folder) if e.kind == "validation"][-2:]
    best = min((one, other), key=lambda m: m.loss)
    for expert in run.learners:
        pairs = [b - a for a, b in zip(one.losses[expert], other.losses[expert], strict=True)]
        against = told[0]["experts"][expert]["first"]
        assert against["step"] == 0 and against["difference"] == pytest.approx(fmean(pairs), abs=1e-9)
        assert against["error"] == pytest.approx(stdev(pairs) / math.sqrt(2), abs=1e-9)
        assert told[1]["experts"][expert]["first"] == {"step": 0, "difference": 0.0, "error": 0.0}
        assert told[1]["experts"][expert]["best"]["step"] == best.step


def test_the_running_average_is_measured_where_it_is_saved_and_the_weights_stay(bench):
    run = bench.run
    before = {e: {k: v.clone() for k, v in learner.values.items()} for e, learner in run.learners.items()}
    learners = {}
    for expert, learner in run.learners.items():
        average = Ema(0.9, {name: value * 0.5 for name, value in learner.values.items()})
        learners[expert] = replace(learner, ema=average)
    averaged = measure(replace(run, learners=learners))
    for expert, learner in run.learners.items():
        assert all(torch.equal(learner.values[k], v) for k, v in before[expert].items())
        lora.load_tensors(learner.parameters, learners[expert].ema.average)
    assert measure(trained_values(run)) == averaged
    for expert, learner in run.learners.items():
        lora.load_tensors(learner.parameters, before[expert])
    assert measure(trained_values(run)) != averaged


@pytest.mark.parametrize(
    "parts",
    [
        [Part(None, 0, (0, 1)), Part(None, 1, (0, 1))],
        [Part("high_noise", 0, (0,)), Part("low_noise", 0, (1,))],
        [Part("high_noise", place, (0, 1)) for place in (0, 1)]
        + [Part("low_noise", place, (2, 3)) for place in (0, 1)],
    ],
)
def test_the_parts_of_several_ranks_are_what_one_measures_and_none_is_measured_twice(bench, parts):
    cells = []
    for part in parts:
        team = SimpleNamespace(part=part, here=[0], heard_halt=lambda: False)
        cells.append(cells_of(replace(bench.run, team=team), 0))
    assert sum(len(part) for part in cells) == 2 * len(bench.run.held_out) and all(cells)
    assert joined(bench.run, cells) == measure(bench.run)


def test_another_rank_that_halts_ends_a_rank_s_part_and_is_told_when_this_one_is_stopped(bench):
    halts = []
    team = SimpleNamespace(part=Part(None, 1, (0, 1)), heard_halt=lambda: True, halt=lambda: halts.append(1))
    team.exchange = lambda mine: [mine]
    assert take_part(replace(bench.run, team=team), 0) == [Told(stopped=True)] and halts == [1]


@pytest.mark.parametrize("here", [True, False])
def test_ranks_that_share_clips_begin_one_once_all_can(bench, here: bool):
    """Else one would wait for the tokens of the other."""
    told: list[bool] = []
    team = SimpleNamespace(part=Part(None, 0, (0, 1), 2), parts=[None, None], here=[0], heard_halt=lambda: False)
    team.exchange_clip = lambda mine: told.append(mine) or [mine, not here]
    team.exchange = lambda mine: [mine, mine]
    held_out = [item if here else msgspec.structs.replace(item, path="gone.mp4") for item in bench.run.held_out]
    split = TokenSplit(None, 0, 2, lambda collective: None)
    mine, _ = take_part(replace(bench.run, team=team, split=split, held_out=held_out), 0)
    assert told == [here] and not mine.cells
    assert (mine.failed is None) == here, "who has failed tells it"


def test_ranks_that_share_clips_take_a_part_of_each_pass(bench):
    """What another would send is not there: how often this one asks for it counts."""
    run, told, asked = shared_with_one_that_asks(bench)
    cells = cells_of(run, 0)
    assert cells.keys() == {(expert, i) for expert in bench.run.learners for i in (0, 1)}
    assert told == [True] * (1 + len(cells) * (1 + 3))
    assert len(asked) == len(cells) * 3 * (4 * bench.run.experts.executors["high_noise"].blocks + 1)


def shared_with_one_that_asks(bench: Bench) -> tuple[Run, list[bool], list[object]]:
    """The second of two ranks that share clips, what it tells the first of each thing made, and its exchanges."""
    told: list[bool] = []
    asked: list[object] = []
    team = SimpleNamespace(part=Part(None, 1, (0, 1), 2), here=[0], heard_halt=lambda: False)
    team.exchange_clip = lambda mine: told.append(mine) or [mine, mine]
    return replace(bench.run, team=team, split=TokenSplit(None, 1, 2, asked.append)), told, asked


@pytest.mark.parametrize("before", [0, 6, -1])
def test_a_rank_that_finds_no_memory_in_a_pass_comes_to_its_end_and_says_so(bench, before: int):
    """Wherever it is in it: the other waits for as many exchanges as there are."""
    of_a_pass = 4 * bench.run.experts.executors["high_noise"].blocks + 1
    run, told, asked = shared_with_one_that_asks(bench)
    fault_injection.arm([f"oom:shared-pass.exchange:{before % of_a_pass}"])
    with pytest.raises(torch.OutOfMemoryError, match="on purpose"):
        cells_of(run, 0)
    assert len(asked) == of_a_pass and told == [True, True, False]


def test_nothing_is_compiled_for_shapes_that_do_not_train(bench, monkeypatch):
    """Else what trains would be compiled otherwise than without validation, and round otherwise."""
    stances = []
    monkeypatch.setattr(torch.compiler, "set_stance", lambda stance: stances.append(stance) or nullcontext())
    run, plan = bench.run, bench.run.experts.plan
    bucket = run.held_out[0].bucket
    other = msgspec.structs.replace(run.held_out[0], bucket=msgspec.structs.replace(bucket, height=64))
    try:
        for changes, held_out, expected in [
            ({"compiled": False}, [other], []),
            ({"compiled": True}, run.held_out, []),
            ({"compiled": True, "any_size": True}, [other], []),
            ({"compiled": True}, [other], ["force_eager"]),
        ]:
            run.experts.plan = msgspec.structs.replace(plan, **changes)
            compiled_as_trained(replace(run, held_out=held_out))
            assert stances == expected
    finally:
        run.experts.plan = plan


def test_of_many_clips_no_more_stay_in_memory_than_have_room(bench, monkeypatch):
    """The others are encoded anew for each expert, and measured the same."""
    run, made = bench.run, []
    monkeypatch.setattr(validation, "encoded", lambda run, draw: made.append(draw.item.id) or encoded(run, draw))
    all_kept = measure(run)
    assert len(made) == len(run.held_out) == 2
    made.clear()
    monkeypatch.setattr(validation, "KEPT", 0)
    assert measure(run) == all_kept
    assert made == [run.held_out[i].id for i in (0, 1, 1)], "the first has room, whatever its size"


def test_the_ranks_of_a_host_keep_no_more_of_them_together_than_one_process_does(bench, monkeypatch):
    run, made = bench.run, []
    size = sum(t.nbytes for t in encoded(run, draw_of(run, run.held_out[0])) if t is not None)
    monkeypatch.setattr(validation, "KEPT", size)  # after the first one is room for another
    monkeypatch.setattr(validation, "encoded", lambda run, draw: made.append(draw.item.id) or encoded(run, draw))
    alone = measure(run)
    assert len(made) == 2
    made.clear()
    team = SimpleNamespace(part=ALONE, here=[0, 1], heard_halt=lambda: False)
    assert measure(replace(run, team=team)) == alone
    assert made == [run.held_out[i].id for i in (0, 1, 1)]


def test_no_random_state_is_touched(bench):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    measure(bench.run)
    assert torch.equal(torch.get_rng_state(), before)


def test_other_noise_or_clips_are_known_as_such(bench):
    run = bench.run
    changed = [
        replace(run, job=with_value(run.job, "job.seed", 7)),
        replace(run, job=with_value(run.job, "validation.bins", 2)),
        replace(run, job=with_value(run.job, "training.loss", "mse")),
        replace(run, held_out=run.held_out[:1]),
    ]
    assert len({compared_with(other) for other in [run, *changed]}) == 5
    assert compared_with(replace(run, job=with_value(run.job, "training.timestep_type", "shift"))) == compared_with(run)


def test_what_cannot_be_measured_is_a_finding_and_training_goes_on(tiny, tmp_path):
    job = write(tmp_path, tiny, clips=2, steps=2, validation={"path": "held", "every": 2, "bins": 1})
    (tmp_path / "held").mkdir()
    shutil.copy(clip(5), tmp_path / "held" / "gone.mp4")
    (tmp_path / "held" / "gone.txt").write_text("an orbit")
    fault_injection.arm(["enospc:validation.begin:0"])
    run = train(job)
    [found] = [d for d in of_kind(run, "finding") if d["code"] == "validation-failed"]
    assert "after step 0" in found["message"] and [d["step"] for d in told(run)] == [2]


def test_what_cannot_be_measured_at_the_end_is_tried_and_said_once(tiny, tmp_path):
    job = write(tmp_path, tiny, clips=2, steps=2, validation={"path": "held", "every": 2, "bins": 1})
    (tmp_path / "held").mkdir()
    shutil.copy(clip(5), tmp_path / "held" / "gone.mp4")
    (tmp_path / "held" / "gone.txt").write_text("an orbit")
    fault_injection.arm(["enospc:validation.begin:2"])
    run = train(job)
    assert len([d for d in of_kind(run, "finding") if d["code"] == "validation-failed"]) == 1 and len(told(run)) == 1


@pytest.mark.parametrize("error", [FileNotFoundError("gone.mp4"), RuntimeError("nobody has seen this one")])
def test_whatever_goes_wrong_after_the_last_clip_is_a_finding_too(bench, monkeypatch, error):
    run = bench.run

    def vanished(run, step, losses):
        raise error

    monkeypatch.setattr("engine.training.validation.event_of", vanished)
    validate(run, 6)
    found = [e.data for e in events(run.folder) if e.kind == "finding"][-1]
    assert found["code"] == "validation-failed" and str(error) in found["message"] and 6 not in run.log.history.measured


def test_the_same_cause_is_said_once_and_again_when_it_changes_or_was_gone(bench, monkeypatch):
    """Also after a resume: what was said lies in the events."""
    run = bench.run
    causes = {
        20: FileNotFoundError("gone.mp4"),
        21: FileNotFoundError("gone.mp4"),
        22: torch.OutOfMemoryError("2.1 GiB are missing"),
        23: torch.OutOfMemoryError("2.3 GiB are missing"),
        24: None,
        25: FileNotFoundError("gone.mp4"),
        26: RuntimeError("unforeseen at 0x7f01"),
        27: RuntimeError("unforeseen at 0x7f02"),
        28: FileNotFoundError("another.mp4"),
    }
    now: list[int] = []

    def fails(run, step, losses):
        if causes[step] is not None:
            raise causes[step]
        return told

    validate(run, 19)
    told = of_kind(run.folder, "validation")[-1] | {"step": 24}
    told.pop("seconds")
    monkeypatch.setattr(validation, "event_of", fails)
    monkeypatch.setattr(validation, "cells_of", lambda run, step: now.append(step))
    monkeypatch.setattr(validation, "joined", lambda *_: None)
    for step in causes:
        validate(run, step)
    assert len(now) == len(causes), "it is tried each time"
    said = [e.data for e in events(run.folder) if e.data.get("step", 0) >= 20]
    assert [d["step"] for d in said if d.get("code") == "validation-failed"] == [20, 22, 25, 26, 28]
    assert [d["step"] for d in said if "experts" in d] == [24]
    assert [e.data["text"] for e in events(run.folder) if e.kind == "log"][-1].endswith("again: after step 24")
    again = read_history(run.folder / "events.jsonl")
    assert again.unmeasured == run.log.history.unmeasured and unmeasured(run) == causes[28].args[0]


def test_the_best_is_kept_named_and_in_the_files(tiny, tmp_path):
    """The first checkpoint is the best by far, as its event is made to say, and long pruned when the run is done."""
    job = write(
        tmp_path,
        tiny,
        clips=5,
        steps=4,
        save={"every": 1, "keep": 2},
        validation={"fraction": 0.4, "every": 1, "bins": 1},
    )
    fault_injection.arm(["raise:forward:3"])
    assert run_job(job, None, resume=False, workers=0, device="cpu") == 1
    log = tmp_path / "runs" / "t" / "events.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        if line["kind"] == "validation" and line["data"]["step"] == 1:
            for losses in line["data"]["experts"].values():
                losses["clips"] = [loss / 10 for loss in losses["clips"]]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = train(job, resume=True)
    [done] = of_kind(run, "done")
    view = RunView()
    for event in events(run):
        apply_event(view, event)
    assert view.ranking is not None and view.ranking.best == done["best"]["step"] == 1
    assert view.outcome.startswith(f"best: step {view.ranking.best}")
    assert all((run / name).exists() for name in done["best"]["files"]) and len(done["best"]["files"]) == 2
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step_000000003", "step_000000004"]
    told = of_kind(run, "checkpoint")[-1]
    assert (told["oldest"], told["best"]) == (3, 1) and view.kept == Kept(oldest=3, best=1)
    numbered = {int(p.name[2:11]) for p in run.glob("t_0*.safetensors")}
    assert numbered == {1, 3, 4}
    for name in done["files"]:
        with safe_open(run / name, "pt") as f:
            assert json.loads(f.metadata()["wanlora.best"]) == done["best"]


def test_what_has_no_lora_files_any_more_is_not_the_best(bench):
    """Pruned while another was better, on a branch that a rollback has left."""
    run = bench.run
    history = run.log.history
    before = dict(history.measured), dict(history.checkpoints)
    try:
        history.measured = {s: Measure(step=s, losses={"high_noise": [loss]}) for s, loss in ((1, 0.1), (2, 0.2))}
        history.checkpoints = {s: f"checkpoints/step_{s:09d}" for s in (1, 2)}
        assert best_of(run) is None
        for expert in run.learners:
            write_lora(run, expert, lora_file(run, expert, 2), 2)
        assert best_of(run)["step"] == 2 and all((run.folder / name).exists() for name in best_of(run)["files"])
    finally:
        history.measured, history.checkpoints = before


def test_a_run_ends_early_by_choice_and_goes_on_when_that_is_taken_back(tiny, tmp_path):
    job = write(
        tmp_path,
        tiny,
        lr=1e-12,
        steps=4,
        validation={"fraction": 0.4, "every": 2, "bins": 1, "stop_when": "no better", "patience": 1},
    )
    run = train(job)
    [done] = of_kind(run, "done")
    assert done["step"] == 2 and done["why"].startswith("ended early: 1 measurement")
    assert (run / "t_high_noise.safetensors").exists() and "ended early" in events(run)[-1].data["why"]
    train(job, resume=True)  # nothing has changed, so it is over
    assert [d["step"] for d in of_kind(run, "done")] == [2, 2] and len(of_kind(run, "step")) == 2
    save_job(with_value(load_job(job), "validation.stop_when", "never"), job)
    train(job, resume=True)
    assert [d["step"] for d in of_kind(run, "done")] == [2, 2, 4] and "why" not in of_kind(run, "done")[-1]
    straight = train(
        write(tmp_path / "straight", tiny, lr=1e-12, steps=4, validation=HELD | {"fraction": 0.4, "bins": 1})
    )
    assert told(run) == told(straight)
    assert_same_bits(run, straight)


def test_events_of_it_are_checked():
    one = {"loss": 1.0, "error": None, "edges": [0, 1], "bins": [1.0], "clips": [1.0]}
    good = {"step": 1, "of": "x", "clips": ["a"], "experts": {"high_noise": one}, "seconds": 1.0}
    assert msgspec.convert(good, ValidationData).measure.loss == 1.0
    for bad in ({"clips": []}, {"clips": ["a", "b"]}, {"experts": {}}, {"experts": {str(i): one for i in range(9)}}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(good | bad, ValidationData)
    nothing = msgspec.convert(good | {"experts": {"high_noise": one | {"clips": [None], "loss": None}}}, ValidationData)
    assert not nothing.measure.finite

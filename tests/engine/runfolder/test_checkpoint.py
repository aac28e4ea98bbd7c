import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from engine.adapters import lora
from engine.run import run_job
from engine.runfolder import checkpoint
from engine.runfolder.checkpoint import State
from engine.training import saving
from engine.training.optimizer import build_optimizer
from engine.training.saving import state_to_come
from presets.errors import UserError
from presets.job.schema import DatasetPanel, Job, JobPanel, ModelPanel, TargetPanel, TrainingPanel
from presets.job.toml_file import load_job, save_job
from presets.planner.sizes import ExpertShape, disk_need
from tests.helpers.jobs import of_kind, write_image_job
from tests.helpers.tiers import thorough
from tests.helpers.waiting import until


def make_state(step: int, seed: int = 0) -> State:
    g = torch.Generator().manual_seed(seed)
    p = torch.nn.Parameter(torch.randn(3, 4, generator=g))
    optimizer = torch.optim.AdamW([p], lr=1e-3)
    p.grad = torch.randn(3, 4, generator=g)
    optimizer.step()
    return State(
        step=step,
        lora={"high_noise": {"a": p.detach()}},
        optimizer={"high_noise": optimizer.state_dict()},
        meta={"job": {"x": 1}, "base": "b"},
    )


def test_everything_comes_back_bit_for_bit(tmp_path):
    state = make_state(5)
    folder, digest = checkpoint.save(tmp_path, state)
    assert folder.name == "step_000000005" and len(digest) == 64
    back = checkpoint.load(folder)
    assert back.step == 5 and back.meta == state.meta
    assert torch.equal(back.lora["high_noise"]["a"], state.lora["high_noise"]["a"])
    mine, theirs = state.optimizer["high_noise"], back.optimizer["high_noise"]
    assert mine["param_groups"] == [{**g, "betas": tuple(g["betas"])} for g in theirs["param_groups"]]
    assert mine["state"].keys() == theirs["state"].keys()
    for key, value in mine["state"][0].items():
        assert torch.equal(value, theirs["state"][0][key]), key


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_a_restored_optimizer_takes_the_same_next_step(tmp_path, name):
    def step(p, optimizer, seed):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
        optimizer.step()

    panel = TrainingPanel(optimizer=name, lr=0.01)
    p = torch.nn.Parameter(torch.ones(6, 5))
    optimizer = build_optimizer(panel, [p])
    for i in range(3):
        step(p, optimizer, i)
    checkpoint.save(tmp_path, State(3, {"e": {"p": p.detach()}}, {"e": optimizer.state_dict()}))
    state = checkpoint.load(checkpoint.newest(tmp_path)[0])
    q = torch.nn.Parameter(state.lora["e"]["p"])
    fresh = build_optimizer(panel, [q])
    fresh.load_state_dict(state.optimizer["e"])
    for i in range(3, 6):
        step(p, optimizer, i)
        step(q, fresh, i)
    assert torch.equal(p, q)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, damage):
    good, _ = checkpoint.save(tmp_path, make_state(5))
    bad, _ = checkpoint.save(tmp_path, make_state(10, seed=1))
    file = bad / "lora_high_noise.safetensors"
    data = file.read_bytes()
    match damage:
        case "truncate":
            file.write_bytes(data[:-1])
        case "flip":
            file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "remove":
            file.unlink()
        case "manifest":
            (bad / "manifest.json").write_text((bad / "manifest.json").read_text()[:-4])
    found, refused = checkpoint.newest(tmp_path)
    assert found == good
    assert len(refused) == 1 and "step_000000010" in refused[0]


def test_kill_at_any_instant_leaves_no_half_checkpoint(tmp_path):
    """A child that saves in a loop is killed again and again: whatever is listed verifies. It is forked anew each time
    by a process that has imported torch."""
    code = (
        "import os, sys, torch\nfrom pathlib import Path\nfrom engine.runfolder import checkpoint\n"
        "from engine.runfolder.checkpoint import State\n"
        "parent = os.getpid()\n"
        "for line in sys.stdin:\n"
        "    i = int(line)\n"
        "    if child := os.fork():\n"
        "        print(child, flush=True)\n"
        "        print(os.waitpid(child, 0)[1], flush=True)\n"
        "    while os.getppid() == parent:\n"
        "        i += 1\n"
        "        lora = {'e': {'a': torch.full((400, 400), float(i))}}\n"
        "        checkpoint.save(Path(sys.argv[1]), State(i, lora, {'e': {'state': {}, 'param_groups': []}}))\n"
    )
    step = 0
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        try:
            for kill in range(4):
                parent.stdin.write(f"{step}\n")
                parent.stdin.flush()
                child = int(parent.stdout.readline())
                before = len(checkpoint.listed(tmp_path))
                until(lambda wanted=before + 3 + kill: len(checkpoint.listed(tmp_path)) >= wanted, "more checkpoints")
                os.kill(child, signal.SIGKILL)
                assert int(parent.stdout.readline()) == signal.SIGKILL
                folders = checkpoint.listed(tmp_path)
                assert all(checkpoint.verify(f) == "" for f in folders)
                step = checkpoint.load(folders[-1]).step
        finally:
            parent.kill()  # and its child ends
    checkpoint.sweep(tmp_path)
    assert not list((tmp_path / "checkpoints").glob("*.tmp-*"))


def test_saving_the_same_step_again_replaces_it(tmp_path):
    checkpoint.save(tmp_path, make_state(5, seed=0))
    second = make_state(5, seed=1)
    folder, _ = checkpoint.save(tmp_path, second)
    assert torch.equal(checkpoint.load(folder).lora["high_noise"]["a"], second.lora["high_noise"]["a"])


def test_prune_keeps_the_newest(tmp_path):
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, make_state(step))
    assert checkpoint.prune(tmp_path, 2) == [1, 2]
    assert [f.name for f in checkpoint.listed(tmp_path)] == ["step_000000003", "step_000000004"]
    assert checkpoint.prune(tmp_path, 2) == []


def test_an_unwritable_place_is_a_user_error(tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(UserError, match="cannot write there"):
        checkpoint.save(tmp_path, make_state(1))


def test_an_error_that_is_no_failed_write_stays_what_it_is(tmp_path, monkeypatch):
    bug = RuntimeError("a bug")

    def broken(name, step):
        raise bug

    monkeypatch.setattr(checkpoint.fault_injection, "at", broken)
    with pytest.raises(RuntimeError) as raised:
        checkpoint.save(tmp_path, make_state(1))
    assert raised.value is bug and bug.__cause__ is None and bug.__context__ is None


def test_state_file_is_plain_json_and_no_pickle(tmp_path):
    folder, _ = checkpoint.save(tmp_path, make_state(5))
    assert json.loads((folder / "state.json").read_text())["step"] == 5
    assert {p.suffix for p in folder.iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize("average", [True, *thorough(False)])
def test_lora_files_of_older_steps_are_mended_from_their_checkpoints_or_named(tiny, tmp_path, average):
    """Three pairs: the first is torn and gone, the second's checkpoint is damaged too; then the rate and the precision
    are set anew, which the first pair's job did not know."""
    path = write_image_job(tmp_path, tiny, prompts=0, steps=3, ema=average, save={"every": 1, "keep": 3})
    run = tmp_path / "runs" / "t"
    assert run_job(path, None, resume=False, workers=0, device="cpu") == 0
    first, gone, second, final = (
        run / f"t_{name}_noise.safetensors" for name in ("000000001_high", "000000001_low", "000000002_high", "low")
    )
    # cloned: they are views of the file
    before = [({k: v.clone() for k, v in load_file(file).items()}, lora.read_metadata(file)) for file in (first, gone)]
    gone.unlink()
    for file in (first, second, final, run / "checkpoints/step_000000002/lora_high_noise.safetensors"):
        os.truncate(file, 100)
    job = load_job(path)
    job.training.lr, job.save.dtype, job.save.keep, job.training.steps = 2e-3, "fp32", 4, 4
    save_job(job, path)
    assert run_job(path, None, resume=True, workers=0, device="cpu") == 0
    for file, (tensors, metadata) in zip((first, gone), before, strict=True):
        assert lora.read_metadata(file) == metadata
        now = load_file(file)
        assert now.keys() == tensors.keys() and all(
            torch.equal(now[k], tensors[k]) and now[k].dtype == tensors[k].dtype for k in tensors
        )
    told = [d["message"] for d in of_kind(run, "finding") if d["code"] == "lora-damaged"]
    assert (
        [text.partition(" is damaged")[0] for text in told] == [second.name, final.name]
        and "no whole checkpoint" in told[0]
        and "when the run is done" in told[1]
    )
    assert any(
        "t_000000001_high_noise.safetensors, t_000000001_low_noise.safetensors" in d["text"]
        for d in of_kind(run, "log")
    )
    assert lora.is_whole(final) and run_job(path, None, resume=True, workers=0, device="cpu") == 0
    assert len([d for d in of_kind(run, "finding") if d["code"] == "lora-damaged"]) == 2, "named once"


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "adafactor", "prodigy"])
def test_the_rehearsed_and_the_foretold_checkpoint_are_as_large_as_a_real_one(tmp_path, monkeypatch, name, ema):
    """Three blocks of Wan's kind, both experts, ranks of their own."""
    shape, ranks = ExpertShape(width=256, ffn=640, layers=3), {"high_noise": 16, "low_noise": 8}
    job = Job(
        job=JobPanel(name="t"),
        model=ModelPanel(path="m"),
        datasets=[DatasetPanel(path="c")],
        training=TrainingPanel(optimizer=name, ema=ema),
        target=TargetPanel(rank=16),
    )
    job.multistage.low.rank = 8
    g = torch.Generator().manual_seed(0)
    build = build_optimizer
    if name == "adamw8bit":  # ours wants the card; the package itself also runs without
        import bitsandbytes  # loads torch's compiler

        def build(training, parameters):
            return bitsandbytes.optim.AdamW8bit(parameters, lr=training.lr)

        monkeypatch.setattr(saving, "build_optimizer", build)
    real, rehearsed = State(1, {}, {}), State(0, {}, {})
    for expert, rank in ranks.items():
        linears = [(shape.width, shape.width)] * 8 + [(shape.width, shape.ffn), (shape.ffn, shape.width)]
        tensors = {
            f"blocks.{i}.{n}.lora_{side}.weight": (
                torch.randn(rank, a, generator=g) if side == "A" else torch.zeros(b, rank)
            )
            for i in range(shape.layers)
            for n, (a, b) in enumerate(linears)
            for side in "AB"
        }
        parameters = [torch.nn.Parameter(t.clone()) for t in tensors.values()]
        optimizer = build(job.training, parameters)
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=g)
        before = torch.get_rng_state()
        to_come = state_to_come(job.training, tensors)
        assert torch.equal(torch.get_rng_state(), before)
        optimizer.step()
        for state, told in ((real, optimizer.state_dict()), (rehearsed, to_come)):
            state.lora[expert], state.optimizer[expert] = tensors, told
            if ema:
                state.ema[expert] = tensors
    sizes = []
    for i, state in enumerate((real, rehearsed)):
        folder, _ = checkpoint.save(tmp_path / str(i), state)
        sizes.append({f.name: f.stat().st_size for f in folder.iterdir() if f.suffix == ".safetensors"})
    assert sizes[0] == sizes[1] and rehearsed.nbytes == real.nbytes
    headers = sum(int.from_bytes(f.read_bytes()[:8], "little") + 8 for f in (tmp_path / "0").rglob("*.safetensors"))
    steps = 4 * 20 * shape.layers * len(ranks) if name == "adamw" else 0  # a counter per tensor
    assert disk_need(job, shape).checkpoint == pytest.approx(sum(sizes[0].values()) - headers - steps, rel=1e-3)


def test_the_rehearsal_is_as_large_as_the_checkpoints_of_the_run(tiny, tmp_path, monkeypatch):
    path = write_image_job(tmp_path, tiny, prompts=0, steps=2, optimizer="prodigy", lr=1.0, save={"every": 2})
    job = load_job(path)
    job.multistage.switch_every = 1
    save_job(job, path)
    sizes, save = [], checkpoint.save

    def seen(run, state, **how):
        sizes.append(state.nbytes)
        return save(run, state, **how)

    monkeypatch.setattr(checkpoint, "save", seen)
    assert run_job(path, None, resume=False, workers=0, device="cpu") == 0
    assert len(sizes) == 2 and sizes[0] == sizes[1] > 0

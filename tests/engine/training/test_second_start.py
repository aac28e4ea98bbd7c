"""A start that finds its base packed: steps are taken while blocks are still being read, and give the same bits."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from engine.system import pinned_memory
from engine.training import train_step
from engine.training.train_step import take_step
from engine.weights import weight_cache
from presets.job.toml_file import load_job, save_job, with_value
from tests.engine.weights.test_weight_cache import wide  # noqa: F401  (a fixture)
from tests.helpers.jobs import write_job
from tests.helpers.training.bench import Bench
from tests.helpers.waiting import PATIENCE

BLOCKS = 3


@pytest.fixture
def start(wide, tmp_path, monkeypatch) -> Callable[[str], Bench]:  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(weight_cache, "_threads", lambda: 1)
    monkeypatch.setattr(pinned_memory, "free_ram", lambda: 2**40)

    def begin(name: str) -> Bench:
        (folder := tmp_path / name).mkdir()
        path: Path = write_job(folder, wide, clips=2, prompts=0, dataset={"num_frames": 1, "cache_latents": True})
        job = with_value(load_job(path), "quantization.transformer", "qfloat8")
        save_job(with_value(job, "multistage.switch_every", 1), path)
        return Bench(path)

    return begin


@pytest.fixture
def disk(monkeypatch) -> Iterator["Disk"]:
    disk = Disk(weight_cache.read_into)
    monkeypatch.setattr(weight_cache, "read_into", disk.read_into)
    yield disk
    disk.let.set()


class Disk:
    """Gives so many blocks, and the others when it is let."""

    def __init__(self, read_into: Callable[..., None]) -> None:
        self._read_into, self.reads, self.gives, self.let = read_into, 0, 0, threading.Event()

    def read_into(self, *what) -> None:
        self.reads += 1
        if self.reads > self.gives:
            assert self.let.wait(PATIENCE)
        self._read_into(*what)


def learnt(bench: Bench) -> dict[str, torch.Tensor]:
    return {f"{e} {n}": t.clone() for e, one in bench.run.learners.items() for n, t in one.values.items()}


def test_the_first_expert_trains_while_the_other_is_read_and_both_learn_the_same(start, disk):
    disk.gives = BLOCKS
    first = start("first")
    assert disk.reads == 0, "it was packed from the base"
    second = start("second")
    for step in range(2):
        if step == 1:
            assert disk.reads <= BLOCKS + 1
            disk.let.set()
        taken = [take_step(bench.run, step) for bench in (first, second)]
        assert all(one is not None and one.finite for one in taken)
        assert taken[0].data["expert"] == taken[1].data["expert"] == ("high_noise", "low_noise")[step]
        assert taken[0].data["loss"] == taken[1].data["loss"]
    ours, theirs = learnt(first), learnt(second)
    assert disk.reads == 2 * BLOCKS and all(torch.equal(t, theirs[name]) for name, t in ours.items())


def test_without_room_for_the_text_encoder_beside_them_they_are_read_after_it(start, disk, monkeypatch):
    held = [weights.blocks for weights in start("first").run.experts._weights.values()]
    need = sum(len(blocks.buffers) * blocks.layout.bytes for blocks in held)
    disk.gives = 2 * BLOCKS
    monkeypatch.setattr(pinned_memory, "free_ram", lambda: pinned_memory.LEAST + need + 1)
    bench = start("second")
    assert all(isinstance(weights.blocks.buffers, list) for weights in bench.run.experts._weights.values())
    assert disk.reads == 2 * BLOCKS and take_step(bench.run, 0) is not None


def test_a_stop_is_heeded_while_blocks_are_waited_for(start, disk, monkeypatch):
    start("first")
    bench = start("second")
    before, control, plain = learnt(bench), bench.run.control, train_step.micro_batch

    def asked_to_stop(*given):
        control.why = "stopped on request"
        return plain(*given)

    monkeypatch.setattr(train_step, "micro_batch", asked_to_stop)
    assert take_step(bench.run, 0) is None and not disk.let.is_set()
    parameters = bench.run.learners["high_noise"].parameters
    assert all(p.grad is None for p in parameters.values())
    assert all(torch.equal(t, before[name]) for name, t in learnt(bench).items())

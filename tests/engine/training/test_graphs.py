"""Whole runs whose blocks are CUDA graphs: the bits of launched ones. What a card records is the card's; here a
recording is the function itself, called again over the same fixed addresses."""

import shutil
from dataclasses import replace
from functools import partial

import msgspec
import pytest
import torch

from engine.executor import executor_resources
from engine.executor.block_executor import BlockExecutor
from engine.memory.planning import Planning
from engine.run import run_job
from engine.system import fault_injection
from engine.training import prepare
from engine.wan import attention
from presets.planner.cards import card_hardware, find_card
from presets.planner.plan import Plan
from presets.planner.sizes import ExpertShape
from presets.planner.workload import workload_of
from tests.engine.executor.test_block_graphs import Recorder
from tests.helpers.jobs import of_kind, write_job
from tests.helpers.training.sameness import differences
from tests.helpers.videos import write_clip

# activations on the host: previews are decoded with nothing of the experts, nor of their graphs, on the device
PLAN = Plan(precision="none", resident=1, activations="host", compiled=False, vae_frames=4)
ROWS = 10_000  # more than any batch has


@pytest.fixture
def recorders(monkeypatch):
    """The recorders of the runs that `planned` makes, one for each time that the experts were laid out."""
    made: list[Recorder] = []

    def planned(plan: Plan, **how) -> list[Recorder]:
        def recorder(device):
            made.append(Recorder(**(how if not made else {})))
            return made[-1]

        def plan_run(job, facts, device, *, vram, before=None, like=None, sharers=1, progress):
            hardware = card_hardware(find_card("4090"), ram=128 * 2**30)
            return Planning(before or plan, "a test", hardware, workload_of(job, facts), ExpertShape())

        made.clear()
        monkeypatch.setattr(executor_resources, "CudaCapture", recorder)
        monkeypatch.setattr(prepare, "plan_run", plan_run)
        return made

    return planned


@pytest.fixture
def job(tiny, tmp_path):
    """Two sizes, batches of two and of one, both experts, a preservation loss, previews, a held-out loss."""

    large = write_clip(tmp_path / "large.mp4", frames=12, fps=16.0, width=96, height=80)

    def write(name: str):
        path = write_job(
            tmp_path / name,
            tiny,
            trigger="frung",
            steps=4,
            batch_size=2,
            gradient_accumulation=2,
            dop=True,
            dop_class="person",
            dataset={"resolutions": [64, 96]},
            save={"every": 2, "keep": 2},
            sample={"every": 1, "num_frames": 1},
            validation={"fraction": 0.34, "every": 2, "bins": 1},
        )
        shutil.copy(large, path.parent / "clips/large.mp4")
        (path.parent / "clips/large.txt").write_text("a large orbit")
        return path

    return write


GRAPHED = msgspec.structs.replace(PLAN, graphed=ROWS)
train = partial(run_job, out=None, workers=0, device="cpu")


@pytest.mark.thorough  # test_block_graphs has the bits of an expert
def test_a_run_whose_blocks_are_graphs_gives_the_bits_of_launched_ones(job, recorders, tmp_path):
    """Also where it fails and is resumed, and memory then runs out while a block is recorded."""
    launched, graphs = (tmp_path / name / "runs" / "t" for name in ("launched", "graphs"))
    recorders(PLAN)
    assert train(job("launched"), resume=False) == 0

    made, path = recorders(GRAPHED), job("graphs")
    fault_injection.arm(["raise:backward:3"])  # after previews, a checkpoint and a measurement
    assert train(path, resume=False) == 1
    fault_injection.arm([])
    assert [d["step"] for d in of_kind(graphs, "step")] == [1, 2]
    assert sum(r.replayed > r.recorded > 0 for r in made) > 1, "they are dropped for a preview, and recorded again"
    assert not [d for d in of_kind(graphs, "log") if "CUDA graphs" in d["text"]]

    made = recorders(GRAPHED, fails=4)
    assert train(path, resume=True) == 0
    # but for the plan, which stands there
    assert not [text for text in differences(graphs, launched) if "state.json differs" not in text]
    said = [d["text"] for d in of_kind(graphs, "log") if "no CUDA graphs" in d["text"]]
    assert len(said) == 1 and "CUDA out of memory" in said[0] and not of_kind(graphs, "replanned")
    assert len(made) > 1 and not any(r.recorded for r in made[1:]), "under the same plan it is not tried again"


def test_a_preview_without_room_is_made_without_the_graphs_before_the_plan_shrinks(
    tiny, tmp_path, recorders, monkeypatch
):
    made = recorders(msgspec.structs.replace(GRAPHED, activations="device"))
    plain, calls = BlockExecutor.predict, []

    def predict(self, *args, **named):
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, *args, **named)

    monkeypatch.setattr(BlockExecutor, "predict", predict)
    monkeypatch.setattr(attention, "CPU", replace(attention.CPU, deterministic=False))
    path = write_job(tmp_path, tiny, steps=1, sample={"every": 0, "first": False})
    assert train(path, resume=False) == 0
    run = tmp_path / "runs" / "t"
    assert len(of_kind(run, "sample")) == 1 and not of_kind(run, "replanned")
    assert "laid out anew" in [d["text"] for d in of_kind(run, "log") if d["level"] == "warning"][-1]
    assert len(made) == 2 and made[0].recorded
    compared = [d["text"] for d in of_kind(run, "log") if "compared" in d["text"]]
    assert len(compared) == 1 and "CUDA graphs are not compared" in compared[0], "launching twice may differ"

"""benchmarks.plan_gradients in small, its plans without the compiler: what it lets pass, and what not."""

import json
import sys

import pytest
import torch

from benchmarks import plan_gradients
from engine.executor.block_executor import BlockExecutor
from presets.planner.plan import Plan


@pytest.fixture
def run(monkeypatch, tmp_path):
    def run() -> tuple[int, dict[str, dict]]:
        file = tmp_path / "gradients.json"
        monkeypatch.setattr(sys, "argv", ["plan_gradients", "--tiny", "--json", str(file)])
        code = plan_gradients.main()
        return code, {row["plan"]: row for row in json.loads(file.read_text())["rows"]}

    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)  # put back
    common = {"precision": "qint8", "compiled": False, "slots": 2}
    plans = {"eager": Plan(**common), "chunks": Plan(**common, chunk=16), "kept": Plan(**common, resident=4, kept=2)}
    monkeypatch.setattr(plan_gradients, "plans", lambda *_, **__: plans)
    return run


def test_all_plans_have_the_gradients_of_the_eager_one(run):
    code, rows = run()
    assert code == 0 and list(rows) == ["eager", "chunks", "kept"]
    assert all(row["worst"] < 1e-4 and len(row["norms"]) == 4 and min(row["norms"]) > 0 for row in rows.values())


def test_a_recomputed_block_that_learns_nothing_is_seen_beside_kept_ones(run, monkeypatch):
    plain = BlockExecutor._backward_block

    def backward(self, weights, *rest):
        if self.resources.plan.kept:
            weights = weights._replace(lora={name: (a.detach(), b.detach()) for name, (a, b) in weights.lora.items()})
        plain(self, weights, *rest)

    monkeypatch.setattr(BlockExecutor, "_backward_block", backward)
    code, rows = run()
    assert code == 1 and rows["chunks"]["worst"] < 1e-4
    assert [norm > 0 for norm in rows["kept"]["norms"]] == [False, False, True, True]
    assert rows["kept"]["worst"] == pytest.approx(1)


def test_nothing_is_right_where_the_eager_run_learns_nothing_either(run, monkeypatch):
    leave = BlockExecutor._leave
    monkeypatch.setattr(
        BlockExecutor, "_leave", lambda self, h, *rest: leave(self, 0 * h, *rest).detach() + 0 * h.sum()
    )
    code, rows = run()
    assert code == 1 and all(max(row["norms"]) == 0 for row in rows.values())


def test_the_worst_block_counts_however_small_it_is():
    right = [torch.tensor([1e-3, 0.0]), torch.tensor([10.0, 0.0])]
    off, worst = plan_gradients.apart([torch.zeros(2), right[1]], right)
    assert off == pytest.approx(1e-4) and worst == 1

"""What a process is told before it trains: what its environment has to say, and the others of its run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine import follow, run
from engine.parallel import team
from engine.parallel.orders import End
from engine.parallel.parts import Rank, parts_of
from engine.run import run_job
from presets.job.toml_file import load_job, save_job, with_value
from tests.helpers.jobs import events, write_job


def test_an_environment_that_fits_no_rank_is_said_in_one_line(monkeypatch, capsys, tmp_path: Path):
    monkeypatch.setenv("WORLD_SIZE", "many")
    assert run_job(tmp_path / "job.toml", None, resume=False) == 1
    out, err = capsys.readouterr()
    assert not out and err.startswith("wanlora: ") and "WORLD_SIZE=many" in err and err.count("\n") == 1


def test_the_cores_of_a_host_are_shared_by_its_own_ranks(monkeypatch):
    monkeypatch.setattr(run, "cores", lambda: 64)
    workers = [run.default_workers(Rank(0, world, 0, here)) for world, here in ((1, 1), (64, 8), (64, 0), (16, 16))]
    assert workers == [4, 4, 1, 2]


def test_cards_of_two_kinds_are_refused_before_anything_is_loaded(tiny: Path, tmp_path: Path, monkeypatch):
    """The second process is of another kind. It takes no order before it has said so, and then that to end."""
    path = write_job(tmp_path, tiny, prompts=0)
    job = with_value(with_value(load_job(path), "job.gpus", [0, 1]), "job.gpus_per_clip", 2)
    save_job(job, path)
    said: list[Any] = []

    class FakeTeam:
        leads, signs = True, SimpleNamespace(give=lambda doing="": None)

        def __init__(self, rank: Any, parts: Any, device: Any, lost: Any) -> None:
            self.parts = parts

        def exchange(self, mine: str) -> list[str]:
            said.append("kind")
            return [mine, "another"]

        def order(self, order: Any) -> None:
            pytest.fail(f"nothing is ordered: {order}")

        def next_order(self) -> End:
            said.append("order")
            return End(1)

        def end(self, code: int) -> None:
            said.append(code)

    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(team, "Team", FakeTeam)
    assert run_job(path, None, resume=False, workers=0, device="cpu") == 1
    assert said == ["kind", 1]
    of = events(tmp_path / "runs/t")
    assert of[-1].kind == "failed" and of[-1].data["user"] and "are not of one kind" in of[-1].data["cause"]
    assert "base model" not in [e.data.get("text") for e in of]

    said.clear()
    second = FakeTeam(None, parts_of(job, 2), None, None)
    second.leads = False
    assert follow._work(second, torch.device("cpu"), 0, lambda facts: facts) == 1
    assert said == ["kind", "order"]

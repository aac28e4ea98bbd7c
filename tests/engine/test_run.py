"""What a process is told before it trains: what its environment has to say."""

from pathlib import Path

from engine.run import run_job


def test_an_environment_that_fits_no_rank_is_said_in_one_line(monkeypatch, capsys, tmp_path: Path):
    monkeypatch.setenv("WORLD_SIZE", "many")
    assert run_job(tmp_path / "job.toml", None, resume=False) == 1
    out, err = capsys.readouterr()
    assert not out and err.startswith("wanlora: ") and "WORLD_SIZE=many" in err and err.count("\n") == 1

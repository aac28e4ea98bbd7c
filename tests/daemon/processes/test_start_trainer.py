"""The command line that starts a trainer, found without importing torch."""

import os
import signal
import subprocess
import sys

from torch.distributed.run import get_args_parser

from daemon.processes.start_trainer import for_gpus, start_trainer, torchrun
from tests.helpers.waiting import PATIENCE


def test_the_trainer_is_launched_by_torchrun_without_importing_torch():
    code = (
        "import sys, daemon.processes.start_trainer, daemon.__main__;"
        " print(*daemon.processes.start_trainer.torchrun(90)); sys.exit(any(m in sys.modules for m in ('torch',"
        " 'textual', 'engine', 'diffusers')))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert told[1:4] == ["-m", "torch.distributed.run", "--standalone"] and told[-2:] == ["-m", "engine"]
    known = {option for action in get_args_parser()._actions for option in action.option_strings}
    assert ("--signals-to-handle=SIGTERM,SIGINT,SIGQUIT" in told) == ("--signals-to-handle" in known)
    assert ("--shutdown-timeout=90" in told) == ("--shutdown-timeout" in known)


def test_several_gpus_have_a_process_each_and_another_trainer_stays_as_it_is():
    assert for_gpus(torchrun(), 2).count("--nproc-per-node=2") == 1
    assert for_gpus(torchrun(), 1) == torchrun() and for_gpus(["trainer"], 4) == ["trainer"]


def test_an_older_torchrun_is_not_given_what_it_does_not_know(tmp_path):
    """In an interpreter of its own: here torch may have been imported already."""
    (tmp_path / "torch/distributed").mkdir(parents=True)
    (tmp_path / "torch/__init__.py").write_text("")
    (tmp_path / "torch/distributed/run.py").write_text('parser.add_argument("--signals-to-handle")')
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from daemon.processes.start_trainer import torchrun;"
        " print(*torchrun(), sep=chr(10))"
    )
    command = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert "--signals-to-handle=SIGTERM,SIGINT,SIGQUIT" in command and not any("shutdown" in part for part in command)


def test_a_trainer_s_log_is_utf8_whatever_its_shell_asks_for(tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)  # as the daemon has it
    process = start_trainer(
        [sys.executable, "-c", "import sys; print('✓ caf\\udce9'); print('…', file=sys.stderr)"],
        job_file=tmp_path / "job.toml",
        out=str(tmp_path),
        options=[],
        environment=os.environ | {"PYTHONIOENCODING": "latin-1"},
        marker="m",
        log=tmp_path / "log",
    )
    assert process.wait(PATIENCE) == 0
    assert (tmp_path / "log").read_text("utf-8").splitlines() in (["✓ caf\\udce9", "…"], ["…", "✓ caf\\udce9"])

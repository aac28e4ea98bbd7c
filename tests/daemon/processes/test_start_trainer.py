"""The command line that starts a trainer, found without importing torch."""

import subprocess
import sys


def test_the_trainer_is_launched_by_torchrun_without_importing_torch():
    code = (
        "import sys, daemon.processes.start_trainer, daemon.__main__;"
        " print(*daemon.processes.start_trainer.torchrun(90)); sys.exit(any(m in sys.modules for m in ('torch',"
        " 'textual', 'engine', 'diffusers')))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert told[1:4] == ["-m", "torch.distributed.run", "--standalone"] and told[-2:] == ["-m", "engine"]
    assert "--signals-to-handle=SIGTERM,SIGINT,SIGQUIT" in told and "--shutdown-timeout=90" in told


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

"""train without a daemon, on a GPU that a daemon's trainer has."""

import os

from presets.job.schema import DatasetPanel, Job, JobPanel
from presets.machine.gpu_locks import lock_gpus
from wanlora_tui.commands.job import hold_gpus


def test_a_gpu_that_is_taken_is_told_with_its_holder(monkeypatch, capsys):
    gpu = f"GPU-train-{os.getpid()}"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpu)
    job = Job(job=JobPanel(name="mine"), datasets=[DatasetPanel(path="clips")])
    lock, _ = lock_gpus([gpu], "orbit")
    hold_gpus(job)
    lock.close()
    assert "warning: GPU 0 is taken by orbit (user " in capsys.readouterr().err
    job.job.gpus = [7]  # the trainer says that there is none
    hold_gpus(job)
    assert capsys.readouterr().err == ""

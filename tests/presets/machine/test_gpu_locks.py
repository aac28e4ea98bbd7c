"""A GPU's lock is one process's at a time, and lives as long as anybody who inherited it."""

import os
import subprocess
import sys

import pytest

from presets.machine.gpu_locks import NAME_BYTES, PREFIX, holder_of, lock_gpus, user_name
from tests.helpers.waiting import PATIENCE, until

GPU = f"GPU-test-{os.getpid()}"


def test_a_gpu_is_held_once_and_free_when_let_go():
    lock, missing = lock_gpus([GPU], "orbit")
    assert missing == [] and len(lock.descriptors) == 2
    assert holder_of(GPU) == f"orbit (user {user_name(os.getuid())}, pid {os.getpid()})"
    other, missing = lock_gpus([f"{GPU}0", GPU], "other")
    assert missing == [GPU] and holder_of(f"{GPU}0").startswith("other ")
    other.close()
    assert holder_of(f"{GPU}0") == "" and holder_of(GPU)
    lock.close()
    assert holder_of(GPU) == "" and lock.descriptors == []


def test_a_gpu_that_only_has_a_number_is_not_locked():
    lock, missing = lock_gpus(["0", "1"], "orbit")
    assert missing == [] and lock.descriptors == []


@pytest.mark.parametrize("what", ["orbit/../x \x1b[2J\n", "x" * 300, "ä"])
def test_whatever_a_job_is_called_its_name_is_one_harmless_word(what):
    lock, _ = lock_gpus([GPU], what)
    told = holder_of(GPU)
    lock.close()
    assert told.isascii() and told.isprintable() and told.count(" ") == 4 and len(told) < NAME_BYTES


@pytest.mark.process
def test_a_process_that_inherits_the_lock_holds_it_after_the_one_that_took_it():
    lock, _ = lock_gpus([GPU], "orbit")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=lock.descriptors) as child:
        lock.close()
        assert holder_of(GPU).startswith("orbit ")
        again, missing = lock_gpus([GPU], "other")
        assert missing == [GPU] and again.descriptors == []
        child.kill()
        child.communicate(timeout=PATIENCE)
        until(lambda: holder_of(GPU) == "")


@pytest.mark.process
def test_a_program_that_a_process_becomes_holds_what_was_left_to_it():
    code = (
        "import os, sys; from presets.machine.gpu_locks import lock_gpus\n"
        f"def take(): lock_gpus([{GPU!r}], 'orbit')[0].leave_to_exec()\n"
        "take(); os.execv(sys.executable, [sys.executable, '-c', 'print(flush=True); input()'])"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"\n"
        assert holder_of(GPU).startswith("orbit ")
        child.kill()
        child.communicate(timeout=PATIENCE)
    until(lambda: holder_of(GPU) == "")


def test_a_name_that_another_program_took_is_told_without_more(monkeypatch, tmp_path):
    table = tmp_path / "unix"
    table.write_text(f"Num RefCount\n0000: 00000002 00000000 00010000 0001 01 99 @{PREFIX}/{GPU}\n0000: 2 0 0 1 1 98\n")
    monkeypatch.setattr("presets.machine.gpu_locks.SOCKETS", table)
    assert holder_of(GPU) == "another program" and holder_of("GPU-other") == ""
    table.unlink()
    assert holder_of(GPU) == ""

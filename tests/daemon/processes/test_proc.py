"""A process is known by more than its pid."""

import os
import signal
import subprocess
import sys

from msgspec.structs import replace

from daemon.processes.proc import (
    MARKER,
    boot_id,
    families,
    identify,
    is_alive,
    marked,
    memory_of,
    oom_kills,
    send,
)
from tests.helpers.waiting import until

SLEEP = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]


def test_a_reused_pid_is_another_process():
    with subprocess.Popen(SLEEP) as child:
        process = identify(child.pid)
        assert process is not None and is_alive(process) and process.boot == boot_id()
        assert not is_alive(replace(process, start=process.start - 1))
        assert not is_alive(replace(process, boot="another boot"))
        send(replace(process, start=process.start - 1), signal.SIGKILL)  # meant for one that is long gone
        assert is_alive(process)
        send(process, signal.SIGKILL)
        until(lambda: not is_alive(process))  # a zombie until its parent looks: it counts as ended
        assert identify(child.pid) == process
    assert identify(child.pid) is None and not is_alive(process)
    send(process, signal.SIGKILL)


def test_a_name_with_brackets_does_not_confuse(tmp_path):
    program = tmp_path / "a) R 1 (b"
    program.symlink_to(sys.executable)
    with subprocess.Popen([str(program), "-c", "import time; time.sleep(600)"]) as child:
        process = identify(child.pid)
        assert process is not None and is_alive(process) and process.start > 1000
        child.kill()


def test_marked_processes_are_found_in_whatever_session_parents_first():
    spawner = (
        "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
        " start_new_session=True); time.sleep(600)"
    )
    marker = f"/test/{os.getpid()}:1"
    with subprocess.Popen([sys.executable, "-c", spawner], env=os.environ | {MARKER: marker}) as parent:
        found = until(lambda: m if len(m := marked(marker)) == 2 else None)
        assert found[0].pid == parent.pid
        assert marked(marker + "1") == [] and marked(marker[:-1]) == []  # job 1 is not job 11
        parent.kill()
        parent.wait()
        assert [p.pid for p in marked(marker)] == [found[1].pid]
        send(found[1], signal.SIGKILL)
        until(lambda: not marked(marker))


def test_the_kernel_tells_its_out_of_memory_kills():
    assert oom_kills() >= -1


def test_a_family_is_all_that_descends_and_what_it_has_in_memory():
    spawner = f"import subprocess, sys, time; subprocess.Popen({SLEEP!r}, start_new_session=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", spawner]) as parent, subprocess.Popen(SLEEP) as other:
        pids = [parent.pid, other.pid]
        found = until(lambda: f if len((f := families(pids))[parent.pid]) == 2 else None)
        child = found[parent.pid][1]
        assert found == {parent.pid: [parent.pid, child], other.pid: [other.pid]}
        assert families([os.getpid()])[os.getpid()][0] == os.getpid() and child in families([os.getpid()])[os.getpid()]
        resident, shared = memory_of(other.pid)
        assert 2**20 < shared < resident < 2**30
        for pid in (*pids, child):
            os.kill(pid, signal.SIGKILL)
    assert families([other.pid]) == {other.pid: [other.pid]}

"""The guards see what a test leaves behind, and let pass what ends with it."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from tests.helpers import leaks, levels
from tests.helpers.leaks import guarded

pytestmark = pytest.mark.process


@contextmanager
def thread() -> Iterator[str]:
    over = threading.Event()
    one = threading.Thread(target=over.wait, name="left-behind")
    one.start()
    yield "thread left-behind"
    over.set()
    one.join()


@contextmanager
def descriptor() -> Iterator[str]:
    fd = os.open(__file__, os.O_RDONLY)
    yield f"descriptor {fd}, {__file__}"
    os.close(fd)


@contextmanager
def context() -> Iterator[str]:
    """Of ZeroMQ: its threads are none of Python's, but hold descriptors."""
    one = zmq.Context()
    one.socket(zmq.ROUTER)
    yield "eventpoll"
    one.destroy(linger=0)


@contextmanager
def detached() -> Iterator[str]:
    """A process in a session of its own, whose parent has ended: as a trainer of a killed daemon."""
    code = (
        "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'],"
        " start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    yield f"process {said.stdout.strip()}: {sys.executable} -c import time; time.sleep(1000)"
    os.kill(int(said.stdout), 9)


@contextmanager
def zombie() -> Iterator[str]:
    one = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)
    yield f"process {one.pid} (a zombie)"
    one.wait()


@contextmanager
def unmarked() -> Iterator[str]:
    """A child with an environment of its own."""
    one = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], env={})
    yield f"process {one.pid}: {sys.executable} -c import time"
    one.kill()
    one.wait()


@contextmanager
def folder() -> Iterator[str]:
    path = Path(tempfile.mkdtemp(prefix="wl", dir="/tmp"))
    yield f"folder {path}"
    shutil.rmtree(path)


LEAKS = [thread, descriptor, context, detached, zombie, unmarked, folder]


@pytest.mark.parametrize("leak", LEAKS, ids=[leak.__name__ for leak in LEAKS])
def test_each_kind_is_named(leak: Callable):
    """Once it is gone, all is well again: so nothing else was seen."""
    with guarded():
        left = leak()
        with pytest.raises(AssertionError, match="the test leaves behind:") as caught, guarded(patience=0.2):
            words = left.__enter__()
        assert words in str(caught.value)
        left.__exit__(None, None, None)


@pytest.mark.parametrize("environment", [None, {}])
def test_a_child_that_was_there_before_may_end(environment: dict[str, str] | None):
    code = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline()
        with guarded(patience=0.2):
            os.kill(child.pid, 9)
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


def test_tests_of_daemons_are_guarded(request: pytest.FixtureRequest, home: Path):
    """As is this one, which has a daemon that is ended with it."""
    assert levels.reaches(request.node, leaks.DAEMONS)
    assert not levels.reaches(request.node, frozenset({"LossyRelay"}))

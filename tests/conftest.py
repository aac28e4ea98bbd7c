"""What tests of several floors share: a user's own home that nobody else's files reach, the demo's files, and the
tiny base. And how the suite's files are dealt out to its workers."""

import fcntl
import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Set
from pathlib import Path

import psutil
import pytest
from _pytest.unraisableexception import gc_collect_iterations_key

# One thread each, in this process and in all that it starts: several tests and trainers share few cores, and their
# threads would wait for each other, spinning.
os.environ |= dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "RAYON_NUM_THREADS",
        "TORCHINDUCTOR_COMPILE_THREADS",
    ),
    "1",
)

# nobody answers there: what asks the Hub is told so at once, and no test goes out
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"

# A shell that puts us into the background ignores them for us and all that we start (nohup the second), and tests send
# them.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

from presets.machine.visible_gpus import NUMBERS, ORDER, VISIBLE
from tests.helpers import NO_GPUS, leaks, levels
from tests.helpers.interface.harness import end_daemon, environment, wanlora
from tests.helpers.terminal import Terminal
from tests.helpers.waiting import until

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")  # the name of this one among several, as xdist gives it
GIB_PER_WORKER = 2  # with all that its tests start
# Objects that come before the youngest are looked through; Python's 700 took a fiftieth to a seventh of the time of two
# files of the interface's tests.
GARBAGE = 10_000
WANLORA = Path(sys.executable).with_name("wanlora")  # the installed command


@pytest.fixture(autouse=True)
def visible_gpus() -> Iterator[None]:
    """A trainer that runs in a test's own process shows CUDA its GPUs by the environment: that ends with the test."""
    before = {name: os.environ.get(name) for name in (VISIBLE, ORDER, NUMBERS)}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(autouse=True)
def no_gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that starts a daemon knows of no GPU, also on a machine that has some."""
    if levels.reaches(request.node, leaks.DAEMONS):
        path = os.environ.get("PYTHONPATH", "")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NO_GPUS), *([path] if path else [])]))


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Around every test that starts a daemon: whatever else it starts, opens and makes ends with it."""
    if levels.reaches(request.node, leaks.DAEMONS):
        with leaks.guarded():
            yield
    else:
        yield


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first worker which needs it makes, for all of them: `make` fills it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if WORKER else base) / f"once_{name}"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = folder.with_suffix(".made")
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `wanlora demo --prepare` writes: clips, clips_control, base, job.toml. Not to be changed: copy what a test
    trains on."""

    def make(folder: Path) -> None:
        said = wanlora("demo", "--prepare", folder, cwd=folder)
        assert said.returncode == 0, said.stderr
        assert said.stdout.splitlines() == [str(folder / "job.toml")]

    return made_once(tmp_path_factory, "demo", make)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base: the real model classes at toy sizes, in fp32. Not to be changed."""
    from engine.demo.tiny_base import build_tiny  # torch, which most tests do without

    return made_once(tmp_path_factory, "tiny", lambda folder: build_tiny(folder / "base")) / "base"


def processes_under(home: Path) -> dict[int, str]:
    """pid -> command line of every process that was started with this home, however it has detached itself since."""
    found = {}
    mark = f"HOME={home}".encode()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if mark in Path(entry.path, "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (
                        Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                    )
            except OSError:  # it has ended meanwhile, or is another user's
                continue
    return {pid: command for pid, command in found.items() if command}  # one without a command line is a zombie


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh user: empty home, XDG folders and runtime directory. Their daemon and all it started are ended with the
    test.

    Its path is short, because the path of a socket may have 107 bytes.
    """
    folder = Path(tempfile.mkdtemp(prefix="wl", dir="/tmp"))
    monkeypatch.setenv("HOME", str(folder))
    for name, place in {
        "RUNTIME_DIR": "run",
        "STATE_HOME": "state",
        "CONFIG_HOME": "config",
        "CACHE_HOME": "cache",
        "DATA_HOME": "data",
    }.items():
        (folder / place).mkdir(mode=0o700)
        monkeypatch.setenv(f"XDG_{name}", str(folder / place))
    try:
        yield folder
        end_daemon(None)
        until(lambda: not processes_under(folder), "the end of everything that was started")
    finally:
        for pid in processes_under(folder):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def terminal(home: Path) -> Iterator[Callable[..., Terminal]]:
    """`terminal("attach", cwd=..., size=...)`: the installed `wanlora` on a terminal of its own, as the user of
    `home`."""
    opened: list[Terminal] = []

    def open_terminal(*args: str, cwd: Path, size: tuple[int, int] = (80, 24)) -> Terminal:
        opened.append(Terminal([str(WANLORA), *args], size=size, cwd=cwd, env=environment()))
        return opened[-1]

    try:
        yield open_terminal
    finally:
        for one in opened:
            one.close()


def pytest_configure(config: pytest.Config) -> None:
    for level, what in levels.LEVELS.items():
        config.addinivalue_line("markers", f"{level}: {what}")
    config.addinivalue_line("markers", "thorough: a dear case of a kind that cheaper ones show; not in `make test`")
    config.stash[gc_collect_iterations_key] = 1  # at the end: four more took seconds
    config.option.loadscopereorder = False  # xdist would begin with the files of most tests, and end with the longest


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """What is made meanwhile stays: looking for garbage in it again and again finds none."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        assert isinstance(item, pytest.Function)
        levels.mark(item)
    if WORKER:
        first = {item.path for item in items if not item.get_closest_marker("unit")}
        items.sort(key=lambda item: item.path not in first)  # files of many small tests fill what the long ones leave
        one_at_a_time = {item.path for item in items if "picture" in item.fixturenames}
        _put_apart(items, one_at_a_time, among=len(first))


def _put_apart(items: list[pytest.Item], paths: Set[Path], among: int) -> None:
    """Files whose tests wait for each other's, evenly among the first ones: side by side they would hold up a worker
    each."""
    order = [path for path in dict.fromkeys(item.path for item in items) if path not in paths]
    for i, path in enumerate(sorted(paths)):
        order.insert(i * among // len(paths), path)
    place = {path: i for i, path in enumerate(order)}
    items.sort(key=lambda item: place[item.path])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """With `-n auto`: two for each core, because most of the tests that take long wait for what they have started."""
    cores = len(os.sched_getaffinity(0))
    if config.option.markexpr == "unit":
        return cores
    return max(1, min(2 * cores, psutil.virtual_memory().available // (GIB_PER_WORKER * 2**30)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    return (yield from levels.watched(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    return (yield from levels.watched(item))


def pytest_collection_finish() -> None:
    """What is imported by now stays: collecting garbage, which the trainer does whenever it plans anew, need not look
    through it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE)

"""The loader: the same bits with any number of workers, and no trouble from workers, clips or signals."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from engine.data.dataset import Item, build_dataset
from engine.data.loader import Loader
from engine.data.sampler import BatchSampler
from presets.clips.clip_facts import scan_dataset
from presets.clips.geometry import Bucket
from presets.errors import UserError
from presets.job.schema import DatasetPanel, Job, JobPanel
from tests.helpers import ROOT
from tests.helpers.videos import write_clip, write_image
from tests.helpers.waiting import PATIENCE, until


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def no_log(text: str) -> None:
    raise AssertionError(f"nothing was to be logged: {text}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for i in range(5):
        write_clip(folder / f"{i}.mp4", frames=24 + 4 * i, fps=24, width=96, height=64)
    write_clip(folder / "wide.mp4", frames=30, width=128, height=48)
    write_image(folder / "still.png", 80, 64)
    return folder


def order_of(folder: Path, batch_size: int = 2, seed: int = 3, **panel) -> BatchSampler:
    values = {
        "num_frames": 9,
        "resolutions": [64],
        "sampling": "realtime",
        "flip_x": True,
        "caption_dropout": 0.3,
        "default_caption": "a clip",
    } | panel
    panels = [DatasetPanel(path=str(folder), **values)]
    job = Job(job=JobPanel(name="x"), datasets=panels)
    return BatchSampler(build_dataset(job, folder, [scan_dataset(panels[0], 0, folder)]), batch_size, seed)


@pytest.mark.parametrize(
    ("panel", "frames"),
    [
        pytest.param({}, {1, 9}, marks=pytest.mark.thorough),
        pytest.param({"sampling": "head", "windows": 2}, {1, 9}, marks=pytest.mark.thorough),
        ({"sampling": "realtime", "windows": 2, "num_frames": 21, "short_clips": "shorten"}, {1, 13, 17, 21}),
    ],
)
def test_the_number_of_workers_does_not_change_a_bit(folder: Path, panel: dict, frames: set[int]) -> None:
    order = order_of(folder, **panel)
    indices = [*range(order.batches_per_epoch + 3), 40, 41, 2]  # on into the second epoch, a seek, and back
    seen = []
    for workers in (0, 1, 3):
        with Loader(order, workers, ahead=2, log=no_log) as loader:
            seen.append([loader.batch(i) for i in indices])
    for index, batches in zip(indices, zip(*seen, strict=True), strict=True):
        draws = order.batch(index)
        for batch in batches:
            assert (batch.draws, batch.ids) == (draws, [d.item.id for d in draws])
            assert batch.frames.shape == (len(draws), batch.bucket.frames, batch.bucket.height, batch.bucket.width, 3)
            assert np.array_equal(batch.frames, batches[0].frames)
    assert {b.bucket.frames for b in seen[0]} == frames


def test_masks_are_the_same_with_any_number_of_workers(tmp_path: Path) -> None:
    """Stills, videos and none in one batch, with flips; a batch without any carries none; and pixels that are not
    needed do not move the masks."""
    for i in range(6):
        write_clip(tmp_path / f"{i}.mp4", frames=24, fps=24, width=96, height=64)
    write_clip(tmp_path / "0.mask.mp4", frames=24, width=96, height=64)
    write_image(tmp_path / "1.mask.png", 96, 64)
    write_image(tmp_path / "p.png", 96, 64)
    write_image(tmp_path / "p.mask.png", 48, 32)
    order = order_of(tmp_path, batch_size=3, mask_min=0.2)
    assert len(order.items) == 7

    def images(draw) -> bool:
        return draw.item.kind == "image"

    seen = []
    for workers in (0, 1, 3):
        with Loader(order, workers, ahead=2, log=no_log, needless=images) as loader:
            seen.append([loader.batch(i) for i in (*range(8), 2)])
    kinds = set()
    for batches in zip(*seen, strict=True):
        first = batches[0]
        held = [d.item.mask is not None for d in first.draws]
        kinds.add((any(held), all(held), first.bucket.frames))
        for batch in batches:
            if not any(held):
                assert batch.masks is None
                continue
            assert batch.masks.dtype == np.float32 and batch.masks.shape == (len(held), *batch.bucket.latent)
            assert np.array_equal(batch.masks, first.masks)
            for mask, has in zip(batch.masks, held, strict=True):
                assert (mask.min() < 0.9 and mask.max() <= 1 and mask.min() >= np.float32(0.2) - 1e-6) == has
                assert has or (mask == 1).all()
        if first.bucket.frames > 1:
            assert all(np.array_equal(batch.frames, first.frames) for batch in batches)
    assert (True, True, 1) in kinds and any(some and not every for some, every, _ in kinds)


def test_a_mask_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_clip(tmp_path / "0.mp4", frames=24)
    write_image(tmp_path / "0.mask.png")
    for workers in (0, 1):
        order = order_of(tmp_path)
        (tmp_path / "0.mask.png").write_bytes(b"torn")
        with (
            Loader(order, workers, log=no_log) as loader,
            pytest.raises(UserError, match="cannot be decoded") as caught,
        ):
            loader.batch(0)
        assert caught.value.where == str(tmp_path / "0.mask.png")
        write_image(tmp_path / "0.mask.png")


def test_a_batch_carries_what_the_step_needs(folder: Path) -> None:
    with Loader(order_of(folder, weight=0.5, regularization=True, caption_dropout=0.0), 0, log=no_log) as loader:
        batch = loader.batch(0)
    n = len(batch.ids)
    assert (batch.captions, batch.weight) == (["a clip"] * n, 0.5)


def test_a_batch_may_be_asked_again(folder: Path) -> None:
    with Loader(order_of(folder), 2, log=no_log) as loader:
        first = loader.batch(4).frames
        first_copy = first.copy()
        for i in (5, 6, 4, 4):
            again = loader.batch(i)
        assert np.array_equal(again.frames, first_copy)
        assert np.array_equal(first, first_copy), "a batch belongs to whoever asked for it"


def test_seeks_never_mix_the_frames_of_two_batches(tmp_path: Path) -> None:
    for i in range(4):
        write_clip(tmp_path / f"{i}.mp4", frames=48 if i else 240, fps=24, width=160, height=96)
    order = order_of(tmp_path, batch_size=1, resolutions=[128], num_frames=41, sampling="uniform")
    indices = [(7 * i) % 29 for i in range(24)]  # each leaves batches behind that are being decoded
    with Loader(order, 2, ahead=1, log=no_log) as loader, Loader(order, 0, log=no_log) as plain:
        for i in indices:
            assert np.array_equal(loader.batch(i).frames, plain.batch(i).frames)


def test_workers_hold_no_torch_and_leave_with_the_loader(folder: Path) -> None:
    loader = Loader(order_of(folder), 2, log=no_log)
    until(lambda: len(loader.pids) == 2)
    pids = loader.pids
    for pid in pids:
        # mapped once everything is imported
        until(lambda pid=pid: "wanlora-frames" in Path(f"/proc/{pid}/maps").read_text())
        mapped = Path(f"/proc/{pid}/maps").read_text()
        assert "libtorch" not in mapped
        assert "libav" in mapped
    loader.close()
    loader.close()
    assert not any(alive(pid) for pid in pids)
    assert not [t for t in psutil.Process().children(recursive=True) if t.pid in pids]


def test_engine_parts_of_the_worker_import_no_torch() -> None:
    code = (
        "import sys, engine.data.decode_worker, engine.data.loader, engine.data.sampler, engine.data.dataset;"
        " print(sorted({'torch', 'diffusers', 'transformers', 'textual'} & sys.modules.keys()))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_a_killed_worker_is_replaced_and_said_so(folder: Path) -> None:
    order, notes = order_of(folder), []
    with Loader(order, 1, ahead=0, log=notes.append) as loader:
        loader.batch(0)
        [pid] = loader.pids
        os.kill(pid, signal.SIGKILL)
        until(lambda: not loader.pids)
        batch = loader.batch(1)
        with Loader(order, 0, log=no_log) as plain:
            assert np.array_equal(batch.frames, plain.batch(1).frames)
        assert len(notes) == 1
        assert "SIGKILL" in notes[0]
        assert batch.draws[0].item.path in notes[0]


def test_a_clip_that_ends_two_workers_is_named(tmp_path: Path) -> None:
    stuck = tmp_path / "stuck.mp4"
    os.mkfifo(stuck)  # reading it waits for what we never write: time enough to kill the worker
    values = {
        "kind": "video",
        "bucket": Bucket(5, 48, 64),
        "sampling": "uniform",
        "caption": "",
        "caption_dropout": 0.0,
        "weight": 1.0,
        "regularization": False,
        "flip_x": False,
        "flip_y": False,
    }
    order = BatchSampler([Item(id="stuck", repeat=0, dataset=0, path=str(stuck), **values)], 1, 0)
    with Loader(order, 1, ahead=0, log=lambda _: None) as loader:
        loader.prefetch(0)
        for _ in range(2):
            ends: list[int] = []
            until(lambda ends=ends: opened_by_a_reader(stuck, ends))
            [pid] = loader.pids
            os.kill(pid, signal.SIGKILL)
            # its first thread is a zombie before its last one lets go of the pipe
            until(lambda pid=pid: pid not in loader.pids)
            os.close(ends[0])
        with pytest.raises(UserError, match=r"stuck\.mp4: two data workers died of it \(signal SIGKILL\)"):
            loader.batch(0)


def opened_by_a_reader(fifo: Path, ends: list[int]) -> bool:
    """Whether some process reads `fifo`; its writing end, which keeps the reader waiting, is put into `ends`."""
    try:
        ends.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as e:
        assert e.errno == errno.ENXIO
        return False
    return True


@pytest.mark.parametrize("workers", [0, 2])
def test_a_clip_deleted_during_the_run_is_named_and_the_others_go_on(tmp_path: Path, workers: int) -> None:
    for i in range(4):
        write_clip(tmp_path / f"{i}.mp4", frames=24)
    order = order_of(tmp_path, batch_size=1)
    gone = next(i for i in range(4) if order.batch(i)[0].item.path.endswith("2.mp4"))
    (tmp_path / "2.mp4").unlink()
    with Loader(order, workers, log=no_log) as loader:
        for i in range(4):
            if i == gone:
                with pytest.raises(UserError, match=r"2\.mp4: is missing"):
                    loader.batch(i)
            else:
                loader.batch(i)


TRAINER = """
import signal, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.engine.data.test_loader import order_of
from engine.data.loader import Loader

for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda *_: None)  # a trainer notes the wish and goes on to its next safe point
loader = Loader(order_of(Path({folder!r})), 2, log=lambda text: print("log", text, flush=True))
loader.batch(0)
while len(loader.pids) < 2:
    time.sleep(0.02)
print(*loader.pids, flush=True)
for line in sys.stdin:
    print(loader.batch(int(line)).ids, flush=True)
loader.close()
print("closed", flush=True)
"""


def trainer(folder: Path) -> tuple[subprocess.Popen[str], list[int]]:
    code = TRAINER.format(root=str(ROOT), folder=str(folder))
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    return process, [int(pid) for pid in process.stdout.readline().split()]


def test_signals_to_the_group_leave_the_workers_alone(folder: Path) -> None:
    process, pids = trainer(folder)
    assert process.stdin and process.stdout and process.stderr
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGTERM)
    os.killpg(process.pid, signal.SIGHUP)
    for pid in pids:  # and to each of them, as an impatient supervisor may
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    out, err = process.communicate("1\n2\n30\n", timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[-1] == "closed"
    assert "log" not in out
    assert not any(alive(pid) for pid in pids)


def test_workers_end_with_a_killed_trainer(folder: Path) -> None:
    process, pids = trainer(folder)
    assert len(pids) == 2
    process.kill()
    _, err = process.communicate(timeout=PATIENCE)
    until(lambda: not any(alive(pid) for pid in pids))
    assert err == ""

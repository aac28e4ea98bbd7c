"""The previews of whole runs: what each prompt says for itself, what stands beside the videos, and that training never
notices."""

import errno
import os
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from engine.executor.block_executor import BlockExecutor
from engine.preview.video_files import is_picture, is_video
from engine.run import run_job
from engine.runfolder import checkpoint, disk_full
from engine.training import previews, trainer
from engine.training.previews import request_of
from presets.job.schema import DatasetPanel
from presets.job.toml_file import load_job, save_job, with_value
from tests.helpers.jobs import of_kind, write_job
from tests.helpers.training.bench import Bench

WIDTH = 32
SMALL = {"width": 32, "height": 32, "guidance": 1.0}
IMAGES = {"num_frames": 1}  # what trains where that does not matter


def turning(path: Path) -> Path:
    """The experts take turns at every step."""
    job = load_job(path)
    job.multistage.switch_every = 1
    save_job(job, path)
    return path


def accelerator(path: Path) -> Path:
    g = torch.Generator().manual_seed(0)
    tensors = {
        f"diffusion_model.blocks.{i}.self_attn.{m}.{side}": torch.randn(shape, generator=g)
        for i in range(2)
        for m in "qv"
        for side, shape in (("lora_A.weight", (2, WIDTH)), ("lora_B.weight", (WIDTH, 2)))
    }
    save_file(
        tensors
        | {
            "diffusion_model.head.head.diff_b": torch.ones(64),
            "diffusion_model.blocks.0.cross_attn.k_img.diff_b": torch.ones(WIDTH),
        },
        path,
    )
    return path


def go(job: Path, **more) -> int:
    return run_job(job, None, resume=more.pop("resume", False), workers=0, device="cpu", **more)


def frames(video: Path) -> np.ndarray:
    with av.open(str(video)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(container.streams.video[0])])


def random_states() -> tuple:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory) -> Path:
    """Two steps with everything that a preview could touch, and no preview."""
    folder = tmp_path_factory.mktemp("quiet")
    assert go(turning(write_job(folder, tiny, prompts=0, steps=2, ema=True, ema_decay=0.5, dataset=IMAGES))) == 0
    return folder / "runs" / "t"


@pytest.fixture(scope="module")
def shown(tiny, tmp_path_factory) -> Path:
    """The same with previews at every step, through an accelerator, of the running averages; prompts with values of
    their own."""
    folder = tmp_path_factory.mktemp("shown")
    path = turning(
        write_job(
            folder,
            tiny,
            prompts=3,
            steps=2,
            ema=True,
            ema_decay=0.5,
            sample={**SMALL, "every": 1, "seed": 7},
            dataset=IMAGES,
        )
    )
    job = load_job(path)
    job.sample.accelerator = str(accelerator(folder / "fast.safetensors").relative_to(folder))
    own = job.sample.prompts[1]
    own.width, own.height, own.num_frames, own.seed = 48, 64, 1, 3
    job.sample.prompts[2].strength = 0.0
    save_job(job, path)
    states = []

    def watched(*args, **named):
        before = random_states()
        plain(*args, **named)
        states.append(before == random_states())

    plain = trainer.make_previews
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "make_previews", watched)
        assert go(path) == 0
    assert states == [True] * 3, "previews drew from a global generator"
    return folder / "runs" / "t"


def test_training_never_notices(base, shown):
    ours, theirs = (checkpoint.load(checkpoint.newest(run)[0]) for run in (shown, base))
    for part in ("lora", "ema"):
        a, b = getattr(ours, part), getattr(theirs, part)
        assert all(torch.equal(a[e][k], b[e][k]) for e in b for k in b[e]) and a.keys() == b.keys()
    for expert, state in theirs.optimizer.items():
        for number, values in state["state"].items():
            assert all(
                torch.equal(torch.as_tensor(ours.optimizer[expert]["state"][number][k]), torch.as_tensor(v))
                for k, v in values.items()
            )
    assert [d["loss"] for d in of_kind(shown, "step")] == [d["loss"] for d in of_kind(base, "step")]
    assert not [d for d in of_kind(shown, "finding") if d["code"] == "preview-failed"]


def test_each_prompt_has_its_own_values(shown):
    first = shown / "samples" / "step_000000000"
    assert frames(first / "00.mp4").shape == (5, 32, 32, 3)
    assert frames(first / "01.mp4").shape == (1, 48, 64, 3)
    assert [d["seed"] for d in of_kind(shown, "sample") if d["step"] == 0] == [7, 3, 9]
    last = shown / "samples" / "step_000000002"
    assert np.array_equal(frames(first / "02.mp4"), frames(last / "02.mp4")), "at strength 0 the LoRA must not show"
    assert not np.array_equal(frames(first / "00.mp4"), frames(last / "00.mp4"))


def test_an_end_image_is_read_at_the_size_of_the_control_image_and_told_in_the_sheets(tiny, tmp_path):
    path = write_job(tmp_path, tiny, prompts=2)
    job = load_job(path)
    job.sample.prompts[0].end_img = "clips/1.mp4"
    save_job(job, path)
    run = Bench(path).run
    to, free = request_of(run, 0), request_of(run, 1)
    assert to.end_CHW is not None and to.end_CHW.shape == to.image_CHW.shape and free.end_CHW is None
    assert not torch.equal(to.end_CHW, to.image_CHW)
    assert "ends at 1.mp4" in previews._about(run, 0) and "ends at" not in previews._about(run, 1)


def test_sheets_stand_beside_the_videos(shown):
    events = of_kind(shown, "sample")
    assert len(events) == 9
    for d in events:
        assert d["sheet"] == f"samples/step_{d['step']:09d}/sheet.png"
        assert d["compare"].endswith(f"compare_{Path(d['path']).stem}.png") and d["compare_video"].endswith(".mp4")
        assert all((shown / d[k]).is_file() for k in ("path", "poster", "sheet", "compare", "compare_video"))
    assert not list(shown.rglob("*.tmp"))
    sheet = Image.open(shown / events[-1]["sheet"])
    assert sheet.width >= 5 * 32 and sheet.height > 32 + 48 + 32
    across = Image.open(shown / "samples/compare_00.png")
    assert across.height > 3 * 32, "one row for each of the three sets"
    assert len(frames(shown / "samples/compare_00.mp4")) == 5


def test_what_the_accelerator_cannot_use_is_said(shown):
    assert [d["text"] for d in of_kind(shown, "log") if "image encoder" in d["text"]] == [
        "fast.safetensors: 1 of its 10 tensors are for an image encoder that Wan 2.2 does not have, such as"
        " diffusion_model.blocks.0.cross_attn.k_img.diff_b; they are left out"
    ]
    assert load_job(shown / "job.toml").sample.accelerator == str(shown.parents[1] / "fast.safetensors")


def test_averages_are_shown_and_saved_by_choice(tiny, tmp_path, base, shown):
    """A resume without a step left to do: the previews of the last step anew, and the final files, under the other
    choices."""
    job = load_job(base / "job.toml")
    sample = load_job(shown / "job.toml").sample
    sample.prompts, sample.accelerator = sample.prompts[:1], ""
    state = checkpoint.load(checkpoint.newest(base)[0])
    seen = {}
    for name, save_average, show_average in (("both", True, True), ("neither", False, False)):
        job.job.name, job.sample, job.save.ema, job.sample.ema = "t", sample, save_average, show_average
        folder = tmp_path / name
        (folder / "runs").mkdir(parents=True)
        shutil.copytree(base, folder / "runs" / "t")
        save_job(job, folder / "job.toml")
        assert go(folder / "job.toml", resume=True) == 0
        run = folder / "runs" / "t"
        expected = (state.ema if save_average else state.lora)["high_noise"]
        written = {k: v.float() for k, v in load_file(run / "t_high_noise.safetensors").items()}
        ours = written["diffusion_model.blocks.0.self_attn.q.lora_B.weight"]
        assert torch.equal(ours, expected["blocks.0.attn1.to_q.lora_B.weight"].bfloat16().float())
        seen[name] = frames(run / "samples" / "step_000000002" / "00.mp4")
    assert not np.array_equal(seen["both"], seen["neither"])


def test_what_is_missing_is_made_on_resume_and_nothing_twice(tiny, tmp_path, monkeypatch):
    job = write_job(tmp_path, tiny, prompts=2, steps=1, sample={**SMALL, **IMAGES, "every": 0}, dataset=IMAGES)
    count, plain = [0], previews.write_video

    def killed(path, *args):
        count[0] += path.name == "01.mp4"
        if count[0]:
            raise KeyboardInterrupt
        plain(path, *args)

    monkeypatch.setattr(previews, "write_video", killed)
    with pytest.raises(KeyboardInterrupt):
        go(job)
    monkeypatch.setattr(previews, "write_video", plain)
    run = tmp_path / "runs" / "t"
    assert [(d["step"], Path(d["path"]).name) for d in of_kind(run, "sample")] == [(0, "00.mp4")]
    before = (run / "samples/step_000000000/00.mp4").stat().st_mtime_ns
    assert go(job, resume=True) == 0
    assert [(d["step"], Path(d["path"]).name) for d in of_kind(run, "sample")] == [
        (0, "00.mp4"),
        (0, "01.mp4"),
        (1, "00.mp4"),
        (1, "01.mp4"),
    ]
    assert (run / "samples/step_000000000/00.mp4").stat().st_mtime_ns == before


def test_what_a_power_cut_tore_is_made_again_or_named(tiny, tmp_path, capsys):
    """Two sets of two, at steps 0 and 2; the run is taken up at step 2. A video is cut, a poster is zeros, a video is
    gone, sheets are torn."""
    job = write_job(tmp_path, tiny, prompts=2, steps=2, sample={**SMALL, **IMAGES, "every": 2}, dataset=IMAGES)
    run = tmp_path / "runs" / "t"
    assert go(job) == 0
    first, last = (run / "samples" / f"step_00000000{step}" for step in (0, 2))
    poster, kept = (last / "00.png").read_bytes(), (last / "01.mp4").stat().st_mtime_ns
    sheet = (first / "sheet.png").read_bytes()
    os.truncate(last / "00.mp4", 1000)
    (last / "00.png").write_bytes(bytes(len(poster)))
    (first / "00.mp4").unlink()
    os.truncate(first / "01.png", 20)
    assert go(job, resume=True) == 0
    assert [(d["step"], Path(d["path"]).name) for d in of_kind(run, "sample")][4:] == [(2, "00.mp4")]
    assert (last / "00.png").read_bytes() == poster and (last / "01.mp4").stat().st_mtime_ns == kept
    assert is_video(last / "00.mp4") and frames(last / "00.mp4").shape == (1, 32, 32, 3)
    (found,) = [d for d in of_kind(run, "finding") if d["code"] == "preview-lost"]
    assert (
        "samples/step_000000000/00.mp4, samples/step_000000000/01.mp4" in found["message"]
        and "step_000000002" not in found["message"]
    )

    across = run / "samples" / "compare_01.mp4"
    os.truncate(last / "sheet.png", 50)
    os.truncate(across, across.stat().st_size - 1)
    before = len(of_kind(run, "sample"))
    assert go(job, resume=True) == 0
    assert is_picture(last / "sheet.png") and is_video(across)
    assert len([d for d in of_kind(run, "finding") if d["code"] == "preview-lost"]) == 1, "named once"
    assert len(of_kind(run, "sample")) == before and (first / "sheet.png").read_bytes() == sheet


def test_a_resumed_run_says_that_its_previews_had_other_noise_levels(tiny, tmp_path):
    """Once, and not of a run that had these from the beginning."""
    sample = {**SMALL, "every": 0, "first": False, "num_frames": 1, "steps": 1}
    job = write_job(tmp_path, tiny, prompts=1, steps=1, sample=sample, dataset=IMAGES)
    run = tmp_path / "runs" / "t"

    def said() -> int:
        return sum("at other noise levels" in d["text"] for d in of_kind(run, "log"))

    assert go(job) == 0 and go(job, resume=True) == 0 and said() == 0
    assert of_kind(run, "sample")[0]["shift"] == 5.0
    events = run / "events.jsonl"
    events.write_text(events.read_text().replace(',"shift":5.0', ""))
    assert "shift" not in of_kind(run, "sample")[0]
    save_job(with_value(load_job(job), "training.steps", 2), job)
    assert go(job, resume=True) == 0 and said() == 1
    assert go(job, resume=True) == 0 and said() == 1


def test_a_control_clip_looks_as_in_its_dataset(tmp_path):
    job = load_job(write_job(tmp_path, tmp_path, prompts=1))
    job.datasets.append(DatasetPanel(path=str(tmp_path / "more"), hdr="tonemap"))
    run = SimpleNamespace(job=job, base_dir=tmp_path)
    assert [previews._hdr_of(run, tmp_path / at) for at in ("more/a.mp4", "clips/a.mp4", "a.mp4")] == [
        "tonemap",
        "plain",
        "plain",
    ]


def test_previews_that_fail_are_findings_and_the_run_goes_on(tiny, tmp_path, monkeypatch):
    """The first prompt's image goes away, the second one's memory runs out with no smaller plan left; the third is
    made."""
    job = write_job(
        tmp_path, tiny, prompts=3, steps=1, sample={**SMALL, **IMAGES, "every": 0, "first": False}, dataset=IMAGES
    )
    plain, predict = previews.request_of, BlockExecutor.predict

    def shot(run, i):
        if i == 0:
            (tmp_path / "control.png").rename(tmp_path / "away.png")
        try:
            made = plain(run, i)
        finally:
            if i == 0:
                (tmp_path / "away.png").rename(tmp_path / "control.png")
        failing[0] = i == 1
        return made

    def short(self, *args, **named):
        if failing[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, *args, **named)

    failing = [False]
    monkeypatch.setattr(previews, "request_of", shot)
    monkeypatch.setattr(BlockExecutor, "predict", short)
    assert go(job) == 0
    run = tmp_path / "runs" / "t"
    found = [d for d in of_kind(run, "finding") if d["code"] == "preview-failed"]
    assert [d["field"] for d in found] == ["sample.prompts[0]", "sample.prompts[1]"]
    assert "control.png" in found[0]["message"] and "no smaller plan is left" in found[1]["message"]
    assert [Path(d["path"]).name for d in of_kind(run, "sample")] == ["02.mp4"] and of_kind(run, "done")


def test_whatever_goes_wrong_in_one_preview_is_a_finding_but_for_a_failed_card(tiny, tmp_path, monkeypatch, capsys):
    """The control image of the second prompt is too large for PIL from now on; then the card itself fails."""
    job = write_job(
        tmp_path, tiny, prompts=2, steps=1, sample={**SMALL, **IMAGES, "every": 0, "first": False}, dataset=IMAGES
    )
    plain = previews.control_image
    calls: list[Exception | None] = [
        None,
        Image.DecompressionBombError("a decompression bomb"),
        torch.AcceleratorError("device-side assert triggered"),
    ]

    def image(*args, **named):
        if error := calls.pop(0):
            raise error
        return plain(*args, **named)

    monkeypatch.setattr(previews, "control_image", image)
    assert go(job) == 0
    run = tmp_path / "runs" / "t"
    (found,) = [d for d in of_kind(run, "finding") if d["code"] == "preview-failed"]
    assert found["field"] == "sample.prompts[1]" and "a decompression bomb" in found["message"]
    assert [Path(d["path"]).name for d in of_kind(run, "sample")] == ["00.mp4"] and of_kind(run, "done")
    assert "DecompressionBombError" in capsys.readouterr().err
    assert go(job, resume=True) == 1 and "device-side assert" in of_kind(run, "failed")[-1]["cause"]
    assert of_kind(run, "failed")[-1]["user"] is False  # another attempt may go well


def test_a_disk_too_full_for_a_folder_pauses_previews_too(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(disk_full, "RETRY_SECONDS", 0.01)
    job = write_job(
        tmp_path, tiny, prompts=1, steps=1, sample={**SMALL, **IMAGES, "every": 0, "first": False}, dataset=IMAGES
    )
    mkdir, full = Path.mkdir, [2]

    def no_room(self, *args, **named):
        if self.parent.name == "samples" and full[0]:
            full[0] -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        mkdir(self, *args, **named)

    monkeypatch.setattr(Path, "mkdir", no_room)
    assert go(job) == 0
    run = tmp_path / "runs" / "t"
    assert [d["name"] for d in of_kind(run, "phase")].count("paused") == 1 and len(of_kind(run, "sample")) == 1

"""Bad input: one clear error that says what, where and how to mend it; exit code 1, no traceback, nothing trained,
nothing of the user's touched.

Every case goes through the real commands; but for `check` of each of them and the training of what was mended, in
processes of their own.
"""

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import msgspec
import pytest
import tomlkit
import zmq
from safetensors.numpy import load_file, save_file

from daemon.errors import NotRunning, RequestRefused
from daemon.wire.blocking import ping
from daemon.wire.client import Client
from daemon.wire.paths import daemon_paths, endpoint
from daemon.wire.protocol import PROTOCOL_VERSION, Refused, reply_decoder
from presets.findings import Finding
from presets.job.schema import (
    DatasetPanel,
    Job,
    JobPanel,
    ModelPanel,
    MultistagePanel,
    PromptPanel,
    QuantizationPanel,
    SamplePanel,
    SavePanel,
    TargetPanel,
    TrainingPanel,
)
from presets.job.toml_file import save_job
from presets.runs.events import read_events
from tests.conftest import WANLORA
from tests.helpers import ROOT
from tests.helpers.interface.harness import environment, wanlora
from tests.helpers.tiers import thorough
from tests.helpers.videos import write_clip, write_image
from tests.helpers.waiting import PATIENCE
from wanlora_tui.cli import main

NAME = "bad_input"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A folder with a job that could be trained as it is: three clips of 48 frames, a control image, the tiny base."""
    folder = tmp_path_factory.mktemp("bad_input") / "sound"
    (folder / "clips").mkdir(parents=True)
    for name in ("a", "b", "c"):
        write_clip(folder / "clips" / f"{name}.mp4", frames=48, fps=16.0, width=64, height=48)
        (folder / "clips" / f"{name}.txt").write_text("[trigger], orbit around the square")
    write_image(folder / "control.png")
    shutil.copytree(tiny, folder / "base")
    job = Job(
        job=JobPanel(name=NAME, trigger="frung"),
        model=ModelPanel(path="base"),
        quantization=QuantizationPanel(text_encoder="none"),
        multistage=MultistagePanel(switch_every=1),
        target=TargetPanel(rank=2),
        save=SavePanel(every=2),
        training=TrainingPanel(steps=2, optimizer="adamw"),
        datasets=[DatasetPanel(path="clips", num_frames=41, resolutions=[64])],
        sample=SamplePanel(
            every=2,
            width=64,
            height=48,
            steps=1,
            num_frames=41,
            first=False,
            prompts=[PromptPanel(prompt="[trigger], orbit", ctrl_img="control.png")],
        ),
    )
    save_job(job, folder / "job.toml")
    return folder


@pytest.fixture
def work(sound: Path) -> Path:
    """At one place for all tests: what one has seen of a clip that is as it was, the next need not look at."""
    folder = sound.parent / "work"
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(sound, folder))


def settings(work: Path, **panels: dict[str, object]) -> None:
    """Change the job file as a user does, without anybody checking it. Panels of the first dataset: `datasets`; of the
    first prompt: `prompt`."""
    document = tomlkit.parse((work / "job.toml").read_text())
    for panel, values in panels.items():
        table = (
            document["datasets"][0]
            if panel == "datasets"
            else document["sample"]["prompts"][0]
            if panel == "prompt"
            else document[panel]
        )
        for key, value in values.items():
            table[key] = value
    (work / "job.toml").write_text(tomlkit.dumps(document))


def contents(folder: Path) -> dict[str, str]:
    """Path -> digest of every file below a folder; folders and links too."""
    found = {}
    for path in sorted(folder.rglob("*")):
        found[str(path.relative_to(folder))] = (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        )
    return found


# --- what is bad ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bad:
    """One kind of bad input: how it comes about, and what must be said about it."""

    code: str
    where: str  # in the field that the finding names
    what: str  # in its message
    fix: str  # in its fix
    make: Callable[[Path], object]


def truncated(work: Path) -> None:
    clip = work / "clips/b.mp4"
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])


def truncated_behind_its_index(work: Path) -> None:
    """As a broken download of a clip made for the web: its table of frames, in front, promises what is not there."""
    clip, whole = work / "clips/b.mp4", work / "whole.mp4"
    with av.open(str(clip)) as source, av.open(str(whole), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    clip.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.8)])
    whole.unlink()


def damaged_in_the_middle(work: Path) -> None:
    """As a bad disk or a bad copy leaves it: complete, with a first and a last frame, and a hole from 1.25 s on."""
    clip, whole = work / "clips/b.mp4", work / "whole.mp4"
    clip.rename(whole)
    with av.open(str(whole)) as source, av.open(str(clip), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for i, packet in enumerate(p for p in source.demux(source.streams.video[0]) if p.size):
            other = av.Packet(bytes(packet) if i != 20 else bytes(packet)[:4] + bytes(packet.size - 4))
            other.pts, other.dts, other.duration, other.time_base, other.is_keyframe, other.stream = (
                packet.pts,
                packet.dts,
                packet.duration,
                packet.time_base,
                packet.is_keyframe,
                stream,
            )
            out.mux(other)
    whole.unlink()


def of_two_sizes(work: Path) -> None:
    """As clips joined without re-encoding are."""
    raw = b""
    for width, height in ((64, 48), (32, 32)):
        raw += write_clip(work / "part.h264", frames=24, width=width, height=height, options={"bf": "0"}).read_bytes()
    (work / "part.h264").write_bytes(raw)
    with av.open(str(work / "part.h264")) as source, av.open(str(work / "clips/b.mkv"), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for i, packet in enumerate(p for p in source.demux(video=0) if p.size):
            packet.pts = packet.dts = i
            packet.time_base, packet.stream = Fraction(1, 16), stream
            out.mux(packet)
    (work / "clips/b.mp4").unlink()
    (work / "part.h264").unlink()


def with_an_odd_name(work: Path) -> None:
    (work / "clips/b.mp4").rename(work / "clips" / os.fsdecode(b"caf\xe9.mp4"))
    (work / "clips/b.txt").unlink()


def without_clips(work: Path) -> None:
    shutil.rmtree(work / "clips")
    (work / "clips").mkdir()


def text_to_video(work: Path) -> None:
    """Both experts with 16 input channels, as Wan 2.2 T2V has them."""
    for expert in ("transformer", "transformer_2"):
        config = json.loads((work / "base" / expert / "config.json").read_text())
        (work / "base" / expert / "config.json").write_text(json.dumps(config | {"in_channels": 16}))
        weights = work / "base" / expert / "diffusion_pytorch_model.safetensors"
        tensors = load_file(weights)
        save_file(tensors | {"patch_embedding.weight": tensors["patch_embedding.weight"][:, :16].copy()}, weights)


def corrupt_shard(work: Path) -> None:
    shard = work / "base/transformer_2/diffusion_pytorch_model.safetensors"
    os.truncate(shard, shard.stat().st_size - 100)


def another_job(work: Path) -> None:
    (work / "runs" / NAME).mkdir(parents=True)
    there = tomlkit.parse((work / "job.toml").read_text())
    there["training"]["batch_size"] = 3
    (work / "runs" / NAME / "job.toml").write_text(tomlkit.dumps(there))
    (work / "runs" / NAME / "events.jsonl").write_text("")


BAD = {
    "a truncated mp4": Bad("clip-unreadable", "clips/b.mp4", "b.mp4", "Copy or export it again", truncated),
    "an mp4 truncated behind its index": Bad(
        "clip-unreadable", "clips/b.mp4", "b.mp4", "Copy or export it again", truncated_behind_its_index
    ),
    "an mp4 damaged in the middle": Bad(
        "clip-unreadable", "clips/b.mp4", "b.mp4 is damaged from 1.", "Copy or export it again", damaged_in_the_middle
    ),
    "a clip of two sizes": Bad(
        "clip-size-changes",
        "clips/b.mkv",
        "b.mkv changes its size from 64x48 to 32x32 pixels at 1.5 s",
        "Cut it there",
        of_two_sizes,
    ),
    "a name that is not UTF-8": Bad(
        "name-not-utf8", "clips/caf\\xe9.mp4", "caf\\xe9.mp4 is not UTF-8", "mv -n -- $'", with_an_odd_name
    ),
    "a GIF": Bad(
        "not-a-video",
        "clips/d.gif",
        "d.gif",
        "Convert it to mp4",
        lambda work: write_clip(work / "clips/d.gif", frames=8, codec="gif"),
    ),
    "a GIF named .mp4": Bad(
        "not-a-video",
        "clips/d.mp4",
        "d.mp4",
        "Convert it to mp4",
        lambda work: write_clip(work / "d.gif", frames=8, codec="gif").rename(work / "clips/d.mp4"),
    ),
    "an empty folder": Bad(
        "dataset-empty", "datasets[0].path", "holds no clip and no image", "Put clips into it", without_clips
    ),
    "a 0-byte file": Bad(
        "clip-unreadable",
        "clips/d.mp4",
        "d.mp4",
        "Copy or export it again",
        lambda work: (work / "clips/d.mp4").touch(),
    ),
    "a text file named .mp4": Bad(
        "not-a-video",
        "clips/d.mp4",
        "d.mp4",
        "",
        lambda work: (work / "clips/d.mp4").write_text("not a video at all, just words\n" * 40),
    ),
    "a clip shorter than asked": Bad(
        "clip-too-short",
        "datasets[0].num_frames",
        "b.mp4 has 21",
        "= 21",
        lambda work: write_clip(work / "clips/b.mp4", frames=21, fps=16.0),
    ),
    "a caption that is not UTF-8": Bad(
        "caption-unreadable",
        "clips/b.txt",
        "not UTF-8",
        "Save it as UTF-8",
        lambda work: (work / "clips/b.txt").write_bytes("[trigger], caf\xe9".encode("latin-1")),
    ),
    "a caption of 1 MB": Bad(
        "caption-unreadable",
        "clips/b.txt",
        "too long",
        "Shorten it",
        lambda work: (work / "clips/b.txt").write_text("word " * 200_000),
    ),
    "num_frames 40": Bad(
        "frames-4n-plus-1",
        "datasets[0].num_frames",
        "40 is not 4n+1",
        "= 41",
        lambda work: settings(work, datasets={"num_frames": 40}),
    ),
    "cache_latents with 41 frames": Bad(
        "latent-cache-multi-frame",
        "datasets[0].cache_latents",
        "41 frames",
        "= false",
        lambda work: settings(work, datasets={"cache_latents": True}),
    ),
    "a sample without ctrl_img": Bad(
        "sample-needs-ctrl-img",
        "sample.prompts[0].ctrl_img",
        "has none",
        "Give a PNG or JPEG",
        lambda work: settings(work, prompt={"ctrl_img": ""}),
    ),
    "a ctrl_img that is not there": Bad(
        "sample-needs-ctrl-img",
        "sample.prompts[0].ctrl_img",
        "does not exist",
        "Give a PNG or JPEG",
        lambda work: settings(work, prompt={"ctrl_img": "nowhere.png"}),
    ),
    "a ctrl_img that is no image": Bad(
        "sample-needs-ctrl-img",
        "sample.prompts[0].ctrl_img",
        "is a text file, not an image",
        "Give a PNG or JPEG",
        lambda work: (work / "control.png").write_text("words"),
    ),
    "DOP with cached text": Bad(
        "dop-excludes-cached-text",
        "training.cache_text_embeddings",
        "cached text embeddings cannot",
        "= false",
        lambda work: settings(work, training={"dop": True, "cache_text_embeddings": True}),
    ),
    "an unknown key": Bad(
        "job-file",
        "training.lrr",
        "Did you mean training.lr?",
        "in the job file",
        lambda work: settings(work, training={"lrr": 1e-4}),
    ),
    "a wrong type": Bad(
        "job-file",
        "training.steps",
        'expected integer, got "many"',
        "in the job file",
        lambda work: settings(work, training={"steps": "many"}),
    ),
    "another trainer's job": Bad(
        "job-file",
        "job.toml",
        "an ai-toolkit job",
        "wanlora new",
        lambda work: (work / "job.toml").write_text("job: extension\nconfig:\n  process:\n  - type: sd_trainer\n"),
    ),
    "no TOML": Bad(
        "job-file",
        "job.toml",
        "not valid TOML",
        "in the job file",
        lambda work: (work / "job.toml").write_text("[job\nname = "),
    ),
    "a model with one expert missing": Bad(
        "model-not-i2v",
        "model.path",
        "the low noise expert is missing",
        "Complete the folder",
        lambda work: shutil.rmtree(work / "base/transformer_2"),
    ),
    "a text-to-video model": Bad(
        "model-not-i2v", "model.path", "16 input channels", "Give Wan 2.2 I2V A14B", text_to_video
    ),
    "a model with a corrupt shard": Bad(
        "model-corrupt", "model.path", "transformer_2/diffusion_pytorch_model.safetensors", "again", corrupt_shard
    ),
    "an output below a file": Bad(
        "out-not-writable",
        "job.name",
        "cannot be written: not a directory",
        "--out",
        lambda work: (work / "runs").write_text(""),
    ),
    "a run folder of another job": Bad(
        "run-folder-other-job", "job.name", "training.batch_size = 3 there, 1 here", f'"{NAME}_2"', another_job
    ),
}


def assert_no_noise(said: "subprocess.CompletedProcess[str]") -> None:
    assert "Traceback" not in said.stderr and "Error:" not in said.stderr, said.stderr
    assert said.returncode == 1, (said.returncode, said.stdout, said.stderr)


def test_the_sound_job_has_no_error(work: Path):
    before = contents(work)
    said = wanlora("check", work / "job.toml", "--json", cwd=work)
    assert said.returncode == 0, said.stdout
    assert contents(work) == before


@pytest.mark.process  # three dozen commands, though in this process
@pytest.mark.parametrize("name", BAD)
def test_check_says_what_where_and_how_to_mend_it(
    work: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """In this process: that a process of its own ends and says nothing else, `submit` and `train` show below."""
    bad = BAD[name]
    bad.make(work)
    before = contents(work)
    monkeypatch.chdir(work)
    assert main(["check", str(work / "job.toml"), "--json"]) == 1
    out, err = capsys.readouterr()
    assert err == "", err
    [finding] = [f for f in json.loads(out) if f["severity"] == "error"]
    assert finding["code"] == bad.code and bad.where in finding["field"]
    assert bad.what in finding["message"] and bad.fix in finding["fix"], finding
    assert finding["fix"], "an error without a fix"
    assert contents(work) == before


PATHS = {
    "datasets": "path",
    "model": "path",
    "validation": "path",
    "prompt": "ctrl_img",
    "target": "start_high",
}


@pytest.mark.process  # as those above
@pytest.mark.parametrize("panel", PATHS)
def test_a_home_of_nobody_is_a_path_that_is_not_there(
    work: Path, panel: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    settings(work, **{panel: {PATHS[panel]: "~nobody-of-this-name/it"}})
    monkeypatch.chdir(work)
    assert main(["check", str(work / "job.toml"), "--json"]) == 1
    out, err = capsys.readouterr()
    errors = [finding for finding in json.loads(out) if finding["severity"] == "error"]
    assert err == "" and any("~nobody-of-this-name" in finding["message"] for finding in errors), out


# --- the trainer and the queue refuse the same ------------------------------------------------------------------------

TRAINED = (
    "a truncated mp4",
    "an mp4 damaged in the middle",
    "a clip of two sizes",
    "a name that is not UTF-8",
    "cache_latents with 41 frames",
    "a text-to-video model",
)


@pytest.mark.parametrize("name", [*TRAINED[:2], *thorough(*TRAINED[2:])])
def test_train_refuses_before_any_work(work: Path, name: str):
    bad, run = BAD[name], work / "runs" / NAME
    bad.make(work)
    before = contents(work)
    said = wanlora("train", "job.toml", cwd=work)
    assert_no_noise(said)
    assert "1 error in the job" in said.stderr and bad.what in said.stderr
    told = [event for event, _ in read_events(run / "events.jsonl")]
    assert {e.kind for e in told} <= {"phase", "finding", "failed"} and told[-1].kind == "failed"
    [error] = [e.data for e in told if e.kind == "finding" and e.data["severity"] == "error"]
    assert error["code"] == bad.code and bad.fix in error["fix"]
    after = contents(work)
    assert set(after) - set(before) == {"runs", f"runs/{NAME}", f"runs/{NAME}/.lock", f"runs/{NAME}/events.jsonl"}
    assert {path: after[path] for path in before} == before


def test_a_job_refused_and_then_mended_trains_in_the_same_folder(work: Path):
    settings(work, datasets={"num_frames": 40})
    assert wanlora("train", "job.toml", cwd=work).returncode == 1
    settings(work, datasets={"num_frames": 1}, training={"steps": 2}, sample={"num_frames": 1})
    from engine.run import run_job  # torch, which the other tests do without
    from engine.system.quick_imports import import_diffusers

    import_diffusers()
    # as the trainer's process does, without another start of it
    assert run_job(work / "job.toml", None, resume=False, workers=0, device="cpu") == 0
    told = [event for event, _ in read_events(work / "runs" / NAME / "events.jsonl")]
    assert [e.seq for e in told] == list(range(1, len(told) + 1)) and told[-1].kind == "done"
    assert all((work / "runs" / NAME / file).is_file() for file in told[-1].data["files"])


@pytest.mark.parametrize("name", ["an unknown key", *thorough("a wrong type", "no TOML")])
def test_a_job_file_that_cannot_be_read_makes_no_run_folder(work: Path, name: str):
    BAD[name].make(work)
    before = contents(work)
    for command in (["train", "job.toml"], ["train", "job.toml", "--out", "elsewhere"]):
        said = wanlora(*command, cwd=work)
        assert_no_noise(said)
        assert len(said.stderr.splitlines()) == 1 and BAD[name].what in said.stderr
    assert contents(work) == before


def test_a_run_of_another_job_stays_as_it_is(work: Path):
    another_job(work)
    before = contents(work)
    for options in ([], ["--resume"]):
        said = wanlora("train", "job.toml", *options, cwd=work)
        assert_no_noise(said)
        assert str(work / "runs" / NAME) in said.stderr
    after = contents(work)
    assert {path: after[path] for path in before if not path.endswith("events.jsonl")} == {
        path: before[path] for path in before if not path.endswith("events.jsonl")
    }
    assert set(after) - set(before) <= {f"runs/{NAME}/.lock"}


@pytest.mark.parametrize(
    "name",
    [
        "a GIF",
        "an mp4 damaged in the middle",
        "a sample without ctrl_img",
        "an unknown key",
        "a run folder of another job",
    ],
)
def test_submit_keeps_it_from_the_queue_and_starts_no_daemon(home: Path, work: Path, name: str):
    BAD[name].make(work)
    before = contents(work)
    said = wanlora("submit", "job.toml", cwd=work)
    assert_no_noise(said)
    assert BAD[name].code in said.stderr and "not submitted" in said.stderr and said.stdout == ""
    assert contents(work) == before
    with pytest.raises(NotRunning):
        ping()


def test_the_daemon_itself_refuses_a_job_file_it_cannot_read(home: Path, work: Path):
    """Another client may not have looked."""
    settings(work, training={"lrr": 1e-4})
    assert wanlora("daemon", "start", cwd=work).returncode == 0

    async def go() -> list[Finding]:
        async with Client() as client:
            with pytest.raises(RequestRefused) as refused:
                await client.submit(work / "job.toml")
            assert await client.jobs() == []
            return refused.value.findings

    [finding] = asyncio.run(go())
    assert (finding.field, finding.message) == ("training.lrr", "unknown key. Did you mean training.lr?")


# --- places that cannot be written ------------------------------------------------------------------------------------


def test_an_output_below_a_file_or_in_proc(home: Path, work: Path):
    before = contents(work)
    for place in (work / "control.png" / "runs", Path("/proc/wanlora")):
        for command in ("train", "submit"):
            said = wanlora(command, "job.toml", "--out", place, cwd=work)
            assert_no_noise(said)
            assert str(place) in said.stderr.replace("\n  ", " ") and "--out" in said.stderr
    assert contents(work) == before


def mounted(options: str, folder: Path, *command: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Run `wanlora` in a mount namespace of its own, in which `folder` is mounted with `options`; nobody else sees it.
    Skips where the system allows no such thing."""
    script = f"mount {options} {folder} || exit 97; exec {WANLORA} " + " ".join(command)
    for unshare in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
        said = subprocess.run(
            [*unshare, "sh", "-c", script],
            cwd=cwd,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if said.returncode != 97 and "unshare" not in said.stderr:
            return said
    pytest.skip(f"this system lets us mount nothing, not even for one process: {said.stderr.strip()}")


@pytest.mark.parametrize("command", ["check", "train"])
def test_a_read_only_disk(work: Path, command: str):
    (work / "runs").mkdir()
    before = contents(work)
    said = mounted("--bind -o ro", Path(f"{work}/runs {work}/runs"), command, "job.toml", cwd=work)
    assert_no_noise(said)
    words = " ".join((said.stdout + said.stderr).lower().split())  # lines end elsewhere where the path is longer
    assert "read-only file system" in words and "--out" in words
    assert contents(work) == before


def test_a_full_disk_is_found_by_arithmetic(work: Path):
    (work / "runs").mkdir()
    before = contents(work)
    said = mounted("-t tmpfs -o size=64k none", work / "runs", "check", "job.toml", "--json", cwd=work)
    assert_no_noise(said)
    [finding] = [f for f in json.loads(said.stdout) if f["severity"] == "error"]
    assert (
        finding["code"] == "disk-too-small"
        and "64 KiB are free" in finding["message"]
        and "Free some space" in finding["fix"]
    )
    assert contents(work) == before


# --- daemons
# ------------------------------------------------------------------------------------------------------------


def test_two_daemons(home: Path, tmp_path: Path):
    assert wanlora("daemon", "start", cwd=tmp_path).returncode == 0
    first = ping().pid
    second = subprocess.run(
        [sys.executable, "-m", "daemon"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert_no_noise(second)
    [line] = [line for line in second.stderr.splitlines() if "INFO" not in line]
    assert f"another daemon (pid {first}) already serves this directory" in line and str(home) in line
    again = wanlora("daemon", "start", cwd=tmp_path)
    assert again.returncode == 0 and "runs already" in again.stderr
    assert ping().pid == first


@contextmanager
def daemon_of_version(version: int) -> Iterator[None]:
    """Something that answers every request where the user's daemon would, in another version of the protocol."""
    where = daemon_paths()
    where.runtime.mkdir(parents=True)
    answer, over = (
        msgspec.msgpack.encode({"version": version, "id": "x", "answer": {"type": "Unheard of"}}),
        threading.Event(),
    )
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.bind(endpoint(where.control))

        def serve() -> None:
            while not over.is_set():
                if socket.poll(50):
                    socket.send_multipart([socket.recv_multipart()[0], answer])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@pytest.mark.parametrize(
    ("version", "older"),
    [
        (PROTOCOL_VERSION - 1, "the daemon: upgrade wanlora where it runs"),
        pytest.param(PROTOCOL_VERSION + 1, "this side: upgrade wanlora here", marks=pytest.mark.thorough),
    ],
)
def test_a_daemon_of_another_version_is_told_by_every_command(home: Path, work: Path, version: int, older: str):
    before = contents(work)
    with daemon_of_version(version):
        for command in (
            ["jobs"],
            ["submit", "job.toml"],
            ["watch"],
            ["wait", "a"],
            ["daemon", "start"],
            ["daemon", "status"],
        ):
            said = wanlora(*command, cwd=work)
            assert_no_noise(said)
            line = said.stderr.splitlines()[-1]
            assert (
                f"the daemon speaks protocol version {version}, this client version {PROTOCOL_VERSION}" in line
                and f"The older one is {older}" in line
            )
        daemon_paths().control.unlink()  # or the tidying of this test would talk to it
    assert contents(work) == before


def test_the_daemon_tells_a_client_of_another_version(home: Path, tmp_path: Path):
    assert wanlora("daemon", "start", cwd=tmp_path).returncode == 0
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.connect(endpoint(daemon_paths().control))
        socket.send(
            msgspec.msgpack.encode({"version": PROTOCOL_VERSION + 1, "id": "new", "command": {"type": "Teleport"}})
        )
        assert socket.poll(1000 * PATIENCE), "no answer"
        reply = reply_decoder.decode(socket.recv())
    assert (
        isinstance(reply.answer, Refused)
        and f"this client speaks protocol version {PROTOCOL_VERSION + 1}" in reply.answer.what
    )
    assert "The older one is the daemon" in reply.answer.fix
    assert wanlora("jobs", cwd=tmp_path).returncode == 0

"""A base model from the Hub: from a real HTTP server on the loopback, cut off, stopped, refused, without room."""

import hashlib
import json
import shutil
import socket
from pathlib import Path

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from engine.weights import hub_download as hub_module
from engine.weights import hub_transfer
from engine.weights.base_model import find_base_model
from engine.weights.hub_download import download_file
from presets.base.composition import NamedBase
from presets.base.model_facts import read_model
from presets.errors import UserError
from presets.job.schema import DatasetPanel, Job, JobPanel, ModelPanel, MultistagePanel
from tests.helpers.hub_server import serving

ID = "owner/model"
BOTH = ("high_noise", "low_noise")
TEXT = "text_encoder/model-00001-of-00002.safetensors"
EXPERT = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def repository(tiny, tmp_path_factory) -> Path:
    """The tiny base as people publish models: a part in shards, and files that nobody needs."""
    folder = Path(shutil.copytree(tiny, tmp_path_factory.mktemp("repository") / "model"))
    for name in (
        "README.md",
        ".gitattributes",
        "transformer/diffusion_pytorch_model.bin",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/pytorch_model.bin",
        "assets/logo.png",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not needed")
    (folder / "tiny.json").unlink()
    text = folder / "text_encoder"
    tensors = load_file(text / "model.safetensors")
    (text / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(weight_map.values()):
        save_file({n: tensors[n] for n in names if weight_map[n] == shard}, text / shard)
    (text / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.fixture
def hub(repository, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(hub_transfer, "WAIT", 0.01)
    monkeypatch.setattr(hub_transfer, "POLL", 0.01)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    with serving({ID: repository}) as server:
        yield server


def quiet(done: int, total: int, text: str) -> None:
    pass


def job_of(*, path: str = ID, experts=BOTH, **named) -> Job:
    return Job(
        job=JobPanel(name="t"),
        model=ModelPanel(path=path, **named),
        multistage=MultistagePanel(**{e: e in experts for e in BOTH}),
        datasets=[DatasetPanel(path=".")],
    )


def get(hub, tmp_path, experts=BOTH, progress=quiet, repo=ID):
    """The experts' folder."""
    return find_base_model(
        job_of(path=repo, experts=experts), tmp_path, progress=progress, endpoint=hub.endpoint, cache=tmp_path / "hub"
    ).source.folder


def files(folder: Path) -> set[str]:
    return {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}


def said(call) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert error.value.fix and error.value.where
    return f"{error.value} {error.value.fix}"


def test_what_is_needed_comes_and_nothing_else(hub, repository, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    seen: list[tuple[int, int]] = []
    folder = get(hub, tmp_path, progress=lambda done, total, text: seen.append((done, total)))
    needed = {
        name
        for name in files(repository)
        if not name.endswith((".bin", ".md", ".png")) and "fp16" not in name and name != ".gitattributes"
    }
    assert files(folder) == needed
    assert all((folder / name).read_bytes() == (repository / name).read_bytes() for name in needed)
    weights = sum((repository / name).stat().st_size for name in needed if name.endswith(".safetensors"))
    assert seen[-1][0] == seen[-1][1] > weights and [done for done, total in seen if total == seen[-1][1]] == sorted(
        done for done, total in seen if total == seen[-1][1]
    )
    facts = read_model(NamedBase(path=ID), tmp_path, cache=tmp_path / "hub")
    assert facts.local and facts.folder == str(folder) and facts.problems == [] and set(facts.sources.values()) == {ID}
    # the token goes to the Hub alone
    assert all(token == (not path.startswith("/cdn/")) for _, path, _, token in hub.asked)
    assert not list((tmp_path / "hub").rglob("*.incomplete"))
    count = len(hub.asked)
    assert get(hub, tmp_path) == folder and len(hub.asked) == count  # nobody is asked again


def test_a_cut_connection_is_taken_up_where_it_was(hub, repository, tmp_path):
    size = (repository / EXPERT).stat().st_size
    hub.cuts[EXPERT] = [20_000, 0, 30_000]
    folder = get(hub, tmp_path)
    ranges = hub.gets(EXPERT)
    begins = [int(r.removeprefix("bytes=").rstrip("-")) if r else 0 for r in ranges]
    assert begins[0] == 0 and begins[1] == begins[2] == 20_000 and begins[3] == 50_000 < size
    assert (folder / EXPERT).read_bytes() == (repository / EXPERT).read_bytes()


def test_a_stopped_download_goes_on_in_the_next_start(hub, repository, tmp_path):
    """The next process: only the partial files are left of the first."""

    class Stop(Exception):
        pass

    def partials():
        """Of the expert's file: its name is its hash."""
        return list(
            (tmp_path / "hub").rglob(f"{hashlib.sha256((repository / EXPERT).read_bytes()).hexdigest()}.incomplete")
        )

    def stop(done, total, text):
        if total > 1000 and text.startswith("downloading") and any(p.stat().st_size >= 5000 for p in partials()):
            raise Stop

    hub.cuts[EXPERT] = [5000, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    with pytest.raises(Stop):
        get(hub, tmp_path, progress=stop)
    (partial,) = partials()
    assert partial.stat().st_size == 5000
    hub.cuts.clear()
    hub.asked.clear()
    folder = get(hub, tmp_path)
    assert hub.gets(EXPERT) == ["bytes=5000-"] and (folder / EXPERT).read_bytes() == (repository / EXPERT).read_bytes()


def test_what_arrives_damaged_is_fetched_again_once(hub, repository, tmp_path):
    hub.spoilt = [TEXT]
    folder = get(hub, tmp_path)
    assert len(hub.gets(TEXT)) == 2 and (folder / TEXT).read_bytes() == (repository / TEXT).read_bytes()
    hub.spoilt = [TEXT, TEXT]
    assert "arrives damaged" in said(lambda: get(hub, tmp_path / "other"))


def test_one_expert_is_enough_for_a_job_of_one(hub, repository, tmp_path):
    folder = get(hub, tmp_path, experts=["high_noise"])
    assert not (folder / "transformer_2/diffusion_pytorch_model.safetensors").exists() and (folder / EXPERT).exists()
    count = len(hub.asked)
    assert get(hub, tmp_path, experts=["high_noise"]) == folder and len(hub.asked) == count
    get(hub, tmp_path)  # a job of both adds the other
    assert (folder / "transformer_2/diffusion_pytorch_model.safetensors").exists() and len(hub.gets(EXPERT)) == 1


def test_too_little_room_is_told_before_anything_large_comes(hub, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(hub_module.shutil, "disk_usage", lambda path: usage._replace(free=2**30 + 1000))
    text = said(lambda: get(hub, tmp_path))
    assert (
        "are to be downloaded into" in text
        and "1.0 GiB free" in text
        and "Free" in text
        and not any(path.startswith("/cdn/") for _, path, _, _ in hub.asked)
    )


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (404, "RepoNotFound", "no repository owner/model"),
        (401, "RepoNotFound", "hf auth login"),
        (403, "GatedRepo", "is gated"),
        (429, "", "too many requests"),
        (403, "", "does not let you"),
        (503, "", "fault of its own"),
    ],
)
def test_refusals_of_the_repository(hub, tmp_path, status, code, words):
    hub.refusals[""] = [(status, {"X-Error-Code": code} if code else {})] * 20
    assert words in said(lambda: get(hub, tmp_path))


def test_a_gated_repository_shows_itself_at_its_files(hub, tmp_path):
    """Its list of files is public."""
    hub.refusals["model_index.json"] = [(403, {"X-Error-Code": "GatedRepo"})] * 20
    assert "Accept its terms" in said(lambda: get(hub, tmp_path))


def test_a_limit_on_requests_is_waited_out(hub, tmp_path):
    hub.refusals[EXPERT] = [(429, {}), (503, {})]
    assert (get(hub, tmp_path) / EXPERT).exists()
    hub.refusals[EXPERT] = [(429, {})] * 50
    assert "too many requests" in said(lambda: get(hub, tmp_path / "other"))


def test_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with socket.socket() as taken:  # bound, not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match="cannot be reached") as error:
            find_base_model(job_of(), tmp_path, endpoint=f"http://127.0.0.1:{taken.getsockname()[1]}", cache=tmp_path)
    assert "Check the network" in error.value.fix
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in said(lambda: find_base_model(job_of(), tmp_path, cache=tmp_path))


def test_what_is_no_base_model(hub, repository, tmp_path):
    hub.repos[ID] = repository / "assets"
    text = said(lambda: get(hub, tmp_path))
    assert "no file of weights" in text
    hub.repos[ID] = bare = Path(shutil.copytree(repository, tmp_path / "bare"))
    (bare / TEXT).unlink()
    assert f"lacks {TEXT}" in said(lambda: get(hub, tmp_path))


def test_a_single_file(hub, repository, tmp_path):
    """As an adapter is named."""
    path = download_file(ID, "assets/logo.png", where="quantization.ara", endpoint=hub.endpoint, cache=tmp_path / "hub")
    assert path.read_bytes() == b"not needed"
    assert "has no file assets/none.png" in said(
        lambda: download_file(
            ID, "assets/none.png", where="quantization.ara", endpoint=hub.endpoint, cache=tmp_path / "hub"
        )
    )
    assert "no repository owner/other" in said(
        lambda: download_file(
            "owner/other", "a.png", where="quantization.ara", endpoint=hub.endpoint, cache=tmp_path / "hub"
        )
    )

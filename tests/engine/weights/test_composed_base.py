"""A base put together from several sources: the default, whose repository holds two experts and nothing else, and all
that users may name."""

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from engine.demo.tiny_base import build_tiny
from engine.encode.umt5 import load_text_encoder
from engine.encode.vae_encoder import load_vae, vae_identity
from engine.run import run_job
from engine.weights import hub_download as hub_module
from engine.weights import hub_transfer
from engine.weights.base_model import BaseModel, find_base_model
from presets.base import fetch_plan
from presets.base.composition import ENCODER_REPO, VAE_REPO, named_base
from presets.base.fetch_plan import fetching_of
from presets.base.model_facts import read_model
from presets.errors import UserError
from presets.facts.gather import gather
from presets.job.schema import DatasetPanel, Job, JobPanel, ModelPanel, MultistagePanel
from presets.job.toml_file import load_job, save_job
from presets.look import Look, LookEnded
from presets.rules.check import check_job
from tests.helpers.comfy_files import (
    sentencepiece_model,
    write_gguf_expert,
    write_official,
    write_text_encoder,
    write_vae,
)
from tests.helpers.facts import gpu, machine
from tests.helpers.hub_repos import COMPLETE_REPO, EXPERTS_REPO, all_repos
from tests.helpers.hub_server import Hub, serving
from tests.helpers.jobs import events, of_kind, write_job
from tests.helpers.training.placements import ON_CPU

pytestmark = pytest.mark.process  # takes seconds

CPU = torch.device("cpu")
SMALL = 30_000  # bytes; the experts have more, configs less


@pytest.fixture(scope="module")
def repos(tiny, tmp_path_factory) -> dict[str, Path]:
    return all_repos(tiny, tmp_path_factory.mktemp("repos"))


@pytest.fixture
def hub(repos, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    monkeypatch.setattr(hub_transfer, "WAIT", 0.01)
    monkeypatch.setattr(hub_transfer, "POLL", 0.01)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with serving(dict(repos)) as server:
        yield server


def job_of(*, experts=("high_noise", "low_noise"), **named) -> Job:
    return Job(
        job=JobPanel(name="t"),
        model=ModelPanel(**named),
        multistage=MultistagePanel(high_noise="high_noise" in experts, low_noise="low_noise" in experts),
        datasets=[DatasetPanel(path=".")],
    )


def found(hub: Hub, tmp_path: Path, **named) -> BaseModel:
    return find_base_model(job_of(**named), tmp_path, endpoint=hub.endpoint)


def sources(base: BaseModel) -> dict[str, str]:
    return {part: place.source for part, place in base.source.places.items()}


def said(call) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert error.value.fix and error.value.where
    return f"{error.value} {error.value.fix}"


def whole(base: BaseModel, tiny: Path) -> None:
    """Every part can be loaded, and the VAE is the tiny base's."""
    state, plain = (
        load_vae(base.source, ON_CPU).state_dict(),
        load_file(tiny / "vae" / "diffusion_pytorch_model.safetensors"),
    )
    assert all(torch.equal(t, plain[name]) for name, t in state.items())
    load_text_encoder(base.source, ON_CPU)
    assert base.source.expert("high_noise").stored and base.source.expert("low_noise").stored


def repositories(hub: Hub) -> set[str]:
    """Those that were asked for anything."""
    return {repo for repo in hub.repos for _, path, _, _ in hub.asked if f"/{repo}" in path}


def test_the_default_base_comes_from_three_repositories(hub, tiny, tmp_path):
    seen: list[tuple[int, int]] = []
    base = find_base_model(
        job_of(), tmp_path, progress=lambda done, total, text: seen.append((done, total)), endpoint=hub.endpoint
    )
    assert sources(base) == {
        "transformer": EXPERTS_REPO,
        "transformer_2": EXPERTS_REPO,
        "vae": VAE_REPO,
        "text_encoder": ENCODER_REPO,
        "tokenizer": ENCODER_REPO,
    }
    assert base.boundary == 0.9
    whole(base, tiny)
    assert base.source.expert("high_noise").stored["patch_embedding.weight"].place.dtype == "BF16"
    total = max(total for _, total in seen)
    assert seen[-1] == (total, total) and total == sum(
        f.stat().st_size for f in (tmp_path / "hub").glob("*/snapshots/**/*") if f.is_file()
    )
    count = len(hub.asked)
    assert sources(found(hub, tmp_path)) == sources(base) and len(hub.asked) == count  # nobody is asked again


def test_a_job_trains_on_the_default_base(hub, tiny, tmp_path, monkeypatch):
    """The whole trainer from nothing but the Hub, with a preview; the next start asks nobody."""
    with monkeypatch.context() as patch:
        # it holds the unseen model for the real one, which needs a GPU
        patch.setattr("engine.run.check_job", lambda job, facts: [])
        fetch = hub_module.download_model
        patch.setattr(
            "engine.weights.hub_download.download_model",
            lambda named, base, **more: fetch(named, base, **{**more, "endpoint": hub.endpoint}),
        )
        path = write_job(tmp_path, tiny, prompts=1, steps=2, sample={"every": 0, "first": False})
        path.write_text(path.read_text().replace(str(tiny), EXPERTS_REPO))
        assert load_job(path).model == ModelPanel()
        assert run_job(path, None, resume=False, workers=0, device="cpu") == 0
    run = tmp_path / "runs" / "t"
    phases = [
        d
        for d in of_kind(run, "phase")
        if d["name"] == "loading" and d["text"].startswith("downloading") and d["total"] > SMALL
    ]
    assert phases and phases[-1]["done"] == phases[-1]["total"] and of_kind(run, "done") and of_kind(run, "sample")
    (started,) = of_kind(run, "started")
    assert started["base"]["vae"] == VAE_REPO and started["base"]["transformer"] == EXPERTS_REPO
    count = len(hub.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    job = load_job(path)
    job.job.name = "offline"
    save_job(job, path)
    assert run_job(path, None, resume=False, workers=0, device="cpu") == 0 and len(hub.asked) == count


def test_a_complete_repository_has_it_all(hub, tiny, tmp_path):
    """Experts in fp32, cast while they are read."""
    base = found(hub, tmp_path, path=COMPLETE_REPO)
    assert set(sources(base).values()) == {COMPLETE_REPO} and repositories(hub) == {COMPLETE_REPO}
    whole(base, tiny)
    part = base.source.expert("low_noise")
    assert len(part.files) == 12 and {s.place.dtype for s in part.stored.values()} == {"F32"}
    path = write_job(tmp_path, tiny, prompts=0, steps=1)
    path.write_text(path.read_text().replace(str(tiny), COMPLETE_REPO))
    assert run_job(path, None, resume=False, workers=0, device="cpu") == 0


def test_the_official_repository(hub, tiny, tmp_path):
    """Wan-AI/Wan2.2-I2V-A14B as its owner lays it out: all parts from it, its pickles too; nothing else is fetched, and
    for one expert only that one."""
    repo = "Wan-AI/Wan2.2-I2V-A14B"
    base = Path(shutil.copytree(tiny, tmp_path / "real"))
    torch.manual_seed(5)
    shutil.rmtree(base / "vae")
    AutoencoderKLWan(base_dim=4).save_pretrained(base / "vae")
    hub.repos[repo] = write_official(tmp_path / "official", base)
    (hub.repos[repo] / "examples").mkdir()
    (hub.repos[repo] / "examples" / "i2v_input.JPG").write_bytes(b"not needed")
    found(hub, tmp_path, path=repo, experts=["low_noise"])
    assert not any("high_noise_model" in name for name in hub.large)
    ours = found(hub, tmp_path, path=repo)
    assert set(sources(ours).values()) == {repo} == repositories(hub) and ours.boundary == 0.9
    state, plain = load_vae(ours.source, ON_CPU).state_dict(), AutoencoderKLWan.from_pretrained(base / "vae")
    assert all(torch.equal(t, plain.state_dict()[name]) for name, t in state.items())
    load_text_encoder(ours.source, ON_CPU)
    assert ours.source.expert("high_noise").config["num_attention_heads"] == 2
    count = len(hub.asked)
    assert found(hub, tmp_path, path=repo).boundary == 0.9 and len(hub.asked) == count


def test_a_repository_of_gguf_files(hub, tiny, tmp_path):
    """Two experts alone, a folder each, which both come for a job of one: their settings are in them. The rest is from
    the known places."""
    repo, base = "owner/gguf", build_tiny(tmp_path / "real", heads=1, head_dim=128)
    for part, side in (("transformer", "High"), ("transformer_2", "Low")):
        write_gguf_expert(tmp_path / "gguf" / f"{side}Noise" / f"W-{side}Noise-Q8_0.gguf", base / part, "Q8_0")
    hub.repos[repo] = tmp_path / "gguf"
    ours = found(hub, tmp_path, path=repo, experts=["low_noise"])
    assert ours.boundary == 0.9 and sources(ours)["vae"] == VAE_REPO
    assert ours.source.expert("high_noise").config["num_layers"] == 2


@pytest.mark.parametrize(("gone", "sources_then"), [
    ("vae", {"vae": VAE_REPO, "text_encoder": COMPLETE_REPO, "tokenizer": COMPLETE_REPO}),
    pytest.param("text_encoder", {"vae": COMPLETE_REPO, "text_encoder": ENCODER_REPO, "tokenizer": ENCODER_REPO},
        marks=pytest.mark.thorough),
    ("tokenizer", {"vae": COMPLETE_REPO, "text_encoder": COMPLETE_REPO, "tokenizer": ENCODER_REPO}),
    pytest.param("scheduler", {"vae": COMPLETE_REPO}, marks=pytest.mark.thorough),
    ("model_index.json", {"vae": COMPLETE_REPO}),
])  # fmt: skip
def test_a_part_gone_from_a_repository_comes_from_the_known_place(hub, repos, tmp_path, gone, sources_then):
    hub.repos[COMPLETE_REPO] = copy = Path(shutil.copytree(repos[COMPLETE_REPO], tmp_path / "copy"))
    shutil.rmtree(copy / gone) if (copy / gone).is_dir() else (copy / gone).unlink()
    base = found(hub, tmp_path, path=COMPLETE_REPO)
    assert sources_then.items() <= sources(base).items() and base.boundary == 0.9
    if gone == "tokenizer":  # a few files, not the encoder's weights
        assert not any(name.startswith(ENCODER_REPO) for name in hub.large)


@pytest.mark.parametrize(
    ("where", "file"),
    [
        (VAE_REPO, "config.json"),
        (VAE_REPO, "diffusion_pytorch_model.safetensors"),
        (ENCODER_REPO, "text_encoder/model-00002-of-00003.safetensors"),
        (EXPERTS_REPO, "transformer_2/config.json"),
    ],
)
def test_a_broken_part_of_a_repository_is_told_before_anything_large_comes(hub, repos, tmp_path, where, file):
    hub.repos[where] = copy = Path(shutil.copytree(repos[where], tmp_path / "copy"))
    (copy / file).unlink()
    text = said(lambda: found(hub, tmp_path))
    assert where in text and (f"lacks {file}" in text or "does not hold the VAE" in text) and not hub.large


def test_a_folder_of_experts_alone_offline(hub, repos, tiny, tmp_path, monkeypatch):
    """The other parts in the cache."""
    found(hub, tmp_path)
    folder = Path(shutil.copytree(repos[EXPERTS_REPO], tmp_path / "experts"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    count = len(hub.asked)
    base = find_base_model(job_of(path="experts"), tmp_path)
    assert base.source.folder == folder and sources(base)["vae"] == VAE_REPO and len(hub.asked) == count
    whole(base, tiny)


def test_without_a_network_what_is_missing_is_named(hub, repos, tmp_path, monkeypatch):
    shutil.copytree(repos[EXPERTS_REPO], tmp_path / "experts")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    text = said(lambda: find_base_model(job_of(path="experts"), tmp_path))
    assert "model.vae" in text and VAE_REPO in text and "HF_HUB_OFFLINE" in text
    job = job_of(path="experts")
    facts = gather(job, tmp_path, out=tmp_path / "runs", machine=machine(gpu()), ask_hub=True)
    assert any(f.code == "model-unavailable" and "HF_HUB_OFFLINE" in f.message for f in check_job(job, facts))


def test_named_parts(hub, repos, tiny, tmp_path):
    """As id, folder (diffusers' or with the part in it) and file; nothing else is fetched for them."""
    shutil.copytree(repos[EXPERTS_REPO], tmp_path / "experts")
    for vae in (
        str(tiny),
        str(tiny / "vae"),
        str(tiny / "vae" / "diffusion_pytorch_model.safetensors"),
        VAE_REPO,
        COMPLETE_REPO,
    ):
        for encoder in (
            str(tiny),
            str(tiny / "text_encoder"),
            str(tiny / "text_encoder" / "model.safetensors"),
            ENCODER_REPO,
        ):
            base = find_base_model(
                job_of(path="experts", vae=vae, text_encoder=encoder), tmp_path, endpoint=hub.endpoint
            )
            assert (sources(base)["vae"], sources(base)["text_encoder"], sources(base)["tokenizer"]) == (
                vae,
                encoder,
                encoder,
            )
            whole(base, tiny)
    assert not any(COMPLETE_REPO in name and "/vae/" not in name for name in hub.large)


def test_named_parts_spare_those_of_the_repository(hub, tiny, tmp_path):
    found(hub, tmp_path, path=COMPLETE_REPO, vae=str(tiny), text_encoder=ENCODER_REPO, experts=["low_noise"])
    assert {name.split("/")[2] for name in hub.large if name.startswith(COMPLETE_REPO)} == {"transformer_2"}
    base = found(hub, tmp_path, path=COMPLETE_REPO)  # the rest is fetched when it is wanted, from where it belongs
    assert set(sources(base).values()) == {COMPLETE_REPO}


def test_comfyui_files_as_parts(hub, repos, tiny, tmp_path):
    """Named by themselves, and a folder of them; an encoder without a tokenizer in it gets the known one."""
    shutil.copytree(repos[EXPERTS_REPO], tmp_path / "experts")
    torch.manual_seed(5)
    vae = AutoencoderKLWan(base_dim=4)
    write_vae(tmp_path / "comfy" / "wan_2.1_vae.safetensors", vae.state_dict())
    write_text_encoder(tmp_path / "comfy" / "umt5_xxl_fp16.safetensors", tiny / "text_encoder", "fp16")
    for named in (
        {"vae": "comfy/wan_2.1_vae.safetensors", "text_encoder": "comfy/umt5_xxl_fp16.safetensors"},
        {"vae": "comfy", "text_encoder": "comfy"},
    ):
        base = find_base_model(job_of(path="experts", **named), tmp_path)
        state = load_vae(base.source, ON_CPU).state_dict()
        assert all(torch.equal(state[name], t) for name, t in vae.state_dict().items())
        assert base.source.spiece_model() == sentencepiece_model()
    tensors = load_file(tmp_path / "comfy" / "umt5_xxl_fp16.safetensors")
    del tensors["spiece_model"]
    save_file(tensors, tmp_path / "comfy" / "umt5_xxl_fp16.safetensors")
    base = find_base_model(job_of(path="experts", **named), tmp_path, endpoint=hub.endpoint)
    assert sources(base)["tokenizer"] == ENCODER_REPO and not any(name.startswith(ENCODER_REPO) for name in hub.large)


def config(folder: Path, **values) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder


WRONG = {
    "vae of the 5B model": ("vae", "vae", {"z_dim": 48}, "48 latent channels, as the VAE of the 5B model"),
    "another model's vae": ("vae", "vae", {"_class_name": "AutoencoderKL"}, "says AutoencoderKL"),
    "T5": ("text_encoder", "text_encoder", {"model_type": "t5"}, "says t5"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_part_is_named(hub, repos, tiny, tmp_path, case):
    """As a folder by `check_job`; from the Hub by the trainer, before anything large comes."""
    field, part, change, words = WRONG[case]
    shutil.copytree(repos[EXPERTS_REPO], tmp_path / "experts")
    wrong = Path(shutil.copytree(tiny, tmp_path / "wrong"))
    config(wrong / part, **change)
    others = {"vae": str(tiny), "text_encoder": str(tiny)}
    job = job_of(path="experts", **{**others, field: str(wrong / part)})
    problem = next(
        f
        for f in check_job(job, gather(job, tmp_path, out=tmp_path, machine=machine(gpu())))
        if f.severity == "error" and f.code.endswith("-wrong")
    )
    assert problem.field == f"model.{field}" and words in problem.message and problem.fix
    hub.repos["owner/wrong"] = wrong
    assert (
        words in said(lambda: found(hub, tmp_path, path="experts", **{**others, field: "owner/wrong"}))
        and not hub.large
    )


def test_an_encoder_and_a_tokenizer_that_do_not_belong_together(repos, tiny, tmp_path):
    """An encoder of 5000 rows, and the tokenizer of the tiny base."""
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    tensors = load_file(copy / "text_encoder" / "model.safetensors")
    width = tensors["shared.weight"].shape[1]
    save_file(
        {
            n: torch.zeros(5000, width) if n in ("shared.weight", "encoder.embed_tokens.weight") else t
            for n, t in tensors.items()
        },
        copy / "text_encoder" / "model.safetensors",
    )
    config(copy / "text_encoder", vocab_size=5000)
    (problem,) = read_model(named_base(job_of(path="copy")), tmp_path).problems
    assert (
        problem.code == "text-encoder-wrong"
        and "5,000" in problem.message
        and "do not belong together" in problem.message
    )


def test_names_that_lead_nowhere(hub, repos, tiny, tmp_path):
    shutil.copytree(repos[EXPERTS_REPO], tmp_path / "experts")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    for vae, words in (
        ("./none", "does not exist"),
        ("empty", "does not hold the VAE"),
        ("notes.txt", "no .safetensors, .gguf or .pth file"),
    ):
        (problem,) = read_model(named_base(job_of(path="experts", vae=vae, text_encoder=str(tiny))), tmp_path).problems
        assert problem.field == "model.vae" and words in problem.message and problem.fix, vae
    (problem,) = read_model(
        named_base(
            job_of(
                path="experts",
                vae=str(tiny),
                text_encoder=str(repos[ENCODER_REPO] / "text_encoder" / "model-00001-of-00003.safetensors"),
            )
        ),
        tmp_path,
    ).problems
    assert problem.field == "model.text_encoder" and "one of several shards" in problem.message
    assert "the Hub has no repository owner/none" in said(
        lambda: found(hub, tmp_path, path="experts", vae="owner/none", text_encoder=str(tiny))
    )
    assert "does not hold the text encoder" in said(
        lambda: found(hub, tmp_path, path="experts", vae=str(tiny), text_encoder=VAE_REPO)
    )


def test_another_vae_is_another_identity(repos, tiny, tmp_path):
    """Cached latents of one are not those of another, also where only its configuration differs."""
    shutil.copytree(repos[EXPERTS_REPO], tmp_path / "experts")
    other = config(Path(shutil.copytree(tiny / "vae", tmp_path / "vae")), latents_mean=[0.5] * 16)
    one, two = (
        find_base_model(job_of(path="experts", vae=vae, text_encoder=str(tiny)), tmp_path)
        for vae in (str(tiny), str(other))
    )
    assert vae_identity(one.source) != vae_identity(two.source)


# Sizes


def sizes(folder: Path, *prefixes: str) -> int:
    wanted = [
        f
        for f in folder.rglob("*")
        if f.is_file()
        and f.suffix in (".safetensors", ".json", ".model")
        and f.relative_to(folder).as_posix().startswith(prefixes)
    ]
    return sum(f.stat().st_size for f in wanted)


def test_sizes_are_the_hubs_own(hub, repos, tmp_path):
    cache = tmp_path / "hub"
    told = fetching_of(named_base(job_of()), tmp_path, cache=cache, endpoint=hub.endpoint)
    assert told is not None and told.problems == [] and not told.unknown
    assert {f.repo: (f.total, f.here) for f in told.fetches} == {
        EXPERTS_REPO: (sizes(repos[EXPERTS_REPO], "transformer"), 0),
        VAE_REPO: (sizes(repos[VAE_REPO], ""), 0),
        ENCODER_REPO: (sizes(repos[ENCODER_REPO], "t"), 0),
    }
    assert told.need == sum(f.total for f in told.fetches) and not hub.large
    for repo in (EXPERTS_REPO, VAE_REPO, ENCODER_REPO):
        assert repo in told.text
    find_base_model(job_of(path=EXPERTS_REPO, experts=["high_noise"]), tmp_path, endpoint=hub.endpoint)
    told = fetching_of(named_base(job_of()), tmp_path, cache=cache, endpoint=hub.endpoint)
    (experts,) = told.fetches
    assert experts.here == sizes(
        repos[EXPERTS_REPO],
        "transformer/",
        "transformer_2/config",
        "transformer_2/diffusion_pytorch_model.safetensors.index",
    )
    assert (
        experts.total - experts.here
        == sum(f.stat().st_size for f in (repos[EXPERTS_REPO] / "transformer_2").glob("*.safetensors"))
        and "are here already" in told.text
    )
    find_base_model(job_of(), tmp_path, endpoint=hub.endpoint)
    assert fetching_of(named_base(job_of()), tmp_path, cache=cache, endpoint=hub.endpoint) is None


def test_a_broken_off_download_counts_what_is_here(hub, tmp_path):
    hub.cuts["diffusion_pytorch_model.safetensors"] = [5000, *[0] * 100]  # of the VAE
    with pytest.raises(UserError):
        found(hub, tmp_path)
    told = fetching_of(named_base(job_of()), tmp_path, cache=tmp_path / "hub", endpoint=hub.endpoint)
    vae = next(f for f in told.fetches if f.repo == VAE_REPO)
    assert 5000 <= vae.here < vae.total
    hub.cuts.clear()
    hub.asked.clear()
    found(hub, tmp_path)
    assert hub.gets("diffusion_pytorch_model.safetensors") == ["bytes=5000-"]


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [(404, "RepoNotFound", "no repository"), (403, "GatedRepo", "is gated"), (503, "", None)],
)
def test_what_check_says_of_a_refusal(hub, tmp_path, monkeypatch, status, code, words):
    hub.refusals[VAE_REPO] = [(status, {"X-Error-Code": code} if code else {})] * 10
    job = job_of()
    told = fetching_of(named_base(job), tmp_path, cache=tmp_path / "hub", endpoint=hub.endpoint)
    assert [f.repo for f in told.fetches] == [EXPERTS_REPO]
    if words:
        assert (
            [p.code for p in told.problems] == ["model-unavailable"]
            and words in told.problems[0].message
            and told.problems[0].field == "model.vae"
        )
    else:
        assert told.problems == [] and "fault of its own" in told.unknown
    monkeypatch.setattr("presets.facts.gather.fetching_of", lambda *_, **_more: told)
    findings = check_job(job, gather(job, tmp_path, out=tmp_path / "runs", machine=machine(gpu()), ask_hub=True))
    advice = next(f for f in findings if f.code == "model-not-local")
    assert EXPERTS_REPO in advice.message and ("is not known, because" in advice.message) == (words is None)
    assert any(f.code == "model-unavailable" for f in findings) == (words is not None)


def test_a_hub_that_does_not_answer_is_waited_for_a_little(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_plan, "PATIENCE", 0.05)
    monkeypatch.setattr(fetch_plan, "plan_fetch", lambda *_args, **_more: threading.Event().wait(5))
    told = fetching_of(named_base(job_of()), tmp_path, cache=tmp_path / "hub")
    assert told is not None and "did not answer in time" in told.unknown and told.fetches == []
    look = Look()
    look.end()
    with pytest.raises(LookEnded):  # nobody wants the answer any more
        fetching_of(named_base(job_of()), tmp_path, cache=tmp_path / "hub", raise_if_ended=look.raise_if_ended)


def test_room_is_made_sure_of_for_all_repositories_before_the_first(hub, repos, tmp_path, monkeypatch):
    """The cache's disk could hold the experts, and not the rest."""
    need = sum(
        sizes(repos[repo], prefix) for repo, prefix in ((EXPERTS_REPO, "t"), (VAE_REPO, ""), (ENCODER_REPO, "t"))
    )
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(hub_module.shutil, "disk_usage", lambda path: usage._replace(free=2**30 + need - 50_000))
    assert "are to be downloaded into" in said(lambda: found(hub, tmp_path)) and not hub.large
    told = fetching_of(named_base(job_of()), tmp_path, cache=tmp_path / "hub", endpoint=hub.endpoint)
    job = job_of()
    monkeypatch.setattr("presets.facts.gather.fetching_of", lambda *_, **_more: told)
    (finding,) = [
        f
        for f in check_job(job, gather(job, tmp_path, out=tmp_path / "runs", machine=machine(gpu()), ask_hub=True))
        if f.code == "cache-too-small"
    ]
    assert "HF_HOME" in finding.fix and finding.severity == "error"


# Going on


def test_another_vae_is_another_run(repos, tiny, tmp_path, capsys):
    path = write_job(tmp_path, tiny, prompts=0, steps=4, save={"every": 2, "keep": 2})
    other = config(Path(shutil.copytree(tiny / "vae", tmp_path / "vae")), latents_mean=[0.5] * 16)
    tensors = load_file(other / "diffusion_pytorch_model.safetensors")
    tensors["quant_conv.bias"] += 0.1
    save_file(tensors, other / "diffusion_pytorch_model.safetensors")
    assert run_job(path, None, resume=False, workers=0, device="cpu") == 0
    job = load_job(path)
    job.model.vae, job.training.steps = "vae", 6
    save_job(job, path)
    assert run_job(path, None, resume=True, workers=0, device="cpu") == 1
    assert "model.vae" in capsys.readouterr().err
    assert run_job(path, None, resume=True, accept_changes=True, workers=0, device="cpu") == 0
    unlike = [
        e.data["message"]
        for e in events(tmp_path / "runs" / "t")
        if e.kind == "finding" and e.data["code"] == "not-comparable"
    ]
    assert any("model.vae" in text for text in unlike) and any("another VAE" in text for text in unlike)

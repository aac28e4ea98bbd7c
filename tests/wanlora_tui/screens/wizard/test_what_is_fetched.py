"""What is to come from the Hub is told before anything is spent: by check, new, doctor and the wizard, with a Hub and
without one."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from presets.base.composition import ENCODER_REPO, VAE_REPO
from presets.job.schema import ModelPanel
from tests.helpers.hub_server import Hub, serving
from tests.helpers.interface.harness import environment, wanlora, write_job
from tests.helpers.interface.wizard_pilot import focus_field, screen_of, screen_text, until, wizard
from tests.helpers.videos import write_clip
from tests.wanlora_tui.screens.wizard.test_wizard import a_draft, resumed, reviewed, work
from wanlora_tui.commands import doctor_machine

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("drawn_when_looked_at")]  # takes seconds

EXPERTS_REPO = ModelPanel().path
FILES = {
    EXPERTS_REPO: [
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "transformer_2/config.json",
        "transformer_2/diffusion_pytorch_model.safetensors",
    ],
    ENCODER_REPO: ["text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/tokenizer.json"],
    VAE_REPO: ["config.json", "diffusion_pytorch_model.safetensors"],
}
SIZE = 3 * 2**20  # bytes of each file of weights
__all__ = ["work"]  # a fixture


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The default base's repositories, by the names and sizes of their files; nothing is read from them here."""
    repos = {repo: tmp_path / "repos" / str(i) for i, repo in enumerate(FILES)}
    for repo, names in FILES.items():
        for name in names:
            (repos[repo] / name).parent.mkdir(parents=True, exist_ok=True)
            (repos[repo] / name).write_bytes(b"0" * SIZE if name.endswith(".safetensors") else b"{}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with serving(repos) as server:
        yield server


def job_in(folder: Path) -> Path:
    (folder / "clips").mkdir()
    write_clip(folder / "clips" / "a.mp4", frames=48)
    return write_job(folder)


def outside(hub: Hub | None, tmp_path: Path, **more: str) -> dict[str, str]:
    return environment(HF_HOME=str(tmp_path / "hf"), **({"HF_ENDPOINT": hub.endpoint} if hub else {}), **more)


def local_advice(stdout: str) -> str:
    return next(f["message"] for f in json.loads(stdout) if f["code"] == "model-not-local")


def test_check_and_new_tell_what_comes_from_where(hub: Hub, tmp_path: Path) -> None:
    job = job_in(tmp_path)
    told = local_advice(wanlora("check", job, "--json", env=outside(hub, tmp_path)).stdout)
    assert (
        f"6.0 MiB from {EXPERTS_REPO} (the experts)" in told
        and f"3.0 MiB from {VAE_REPO} (the VAE)" in told
        and f"from {ENCODER_REPO} (the text encoder, the tokenizer)" in told
    )
    said = wanlora(
        "new", "--kind", "motion", "--clips", "clips", "--out", "new.toml", cwd=tmp_path, env=outside(hub, tmp_path)
    )
    assert (
        said.returncode == 0
        and said.stdout == "new.toml\n"
        and "To be fetched from the Hub first" in said.stderr
        and VAE_REPO in said.stderr
    )
    assert not hub.large


def test_without_a_hub_it_is_said_and_nothing_more(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    told = local_advice(wanlora("check", job, "--json", env=outside(None, tmp_path)).stdout)
    assert EXPERTS_REPO in told and "is not known, because the Hub cannot be reached" in told and "MiB" not in told
    said = wanlora(
        "new", "--kind", "motion", "--clips", "clips", "--out", "new.toml", cwd=tmp_path, env=outside(None, tmp_path)
    )
    assert (
        said.returncode == 0
        and said.stdout == "new.toml\n"
        and "is not known, because the Hub cannot be reached" in said.stderr
        and "Traceback" not in said.stderr
    )


def test_doctor_tells_it(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    line = doctor_machine.model()
    assert line.level == "warn" and f"6.0 MiB from {EXPERTS_REPO}" in line.text and VAE_REPO in line.text


async def test_the_wizard_tells_it_and_takes_the_parts(
    hub: Hub, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    async with wizard(a_draft(work, "review", values={})) as pilot:
        await resumed(pilot, "review")
        pane = await reviewed(pilot)
        (advice,) = [f for f in pane.findings if f.code == "model-not-local"]
        assert f"6.0 MiB from {EXPERTS_REPO}" in advice.message and f"3.0 MiB from {VAE_REPO}" in advice.message
        screen_of(pilot).state.set_value("model.vae", str(work / "base"))
        pane.bring_up_to_date()
        await until(pilot, lambda: not pane.checking and not pane.watching, "the second check")
        (advice,) = [f for f in pane.findings if f.code == "model-not-local"]
        assert EXPERTS_REPO in advice.message and VAE_REPO not in advice.message
        assert screen_of(pilot).state.written_job().model.vae == "base"


async def test_the_parts_are_rows_of_the_settings(work: Path) -> None:
    async with wizard(a_draft(work, "settings")) as pilot:
        await resumed(pilot, "settings")
        pane = screen_of(pilot).pane
        assert pane is not None
        pane.query_one("#panels").highlighted = pane.query_one("#panels").get_option_index("model")  # type: ignore[attr-defined]
        await until(pilot, lambda: pane.query("#field-model-text_encoder"), "the form of the model")
        await pilot.press("enter")
        await focus_field(pilot, "model.vae")
        await pilot.press(*"bas", "right", "tab")
        await until(pilot, lambda: screen_of(pilot).state.value("model.vae") == "base/", "the completed path")
        assert "Text encoder" in screen_text(pilot.app)
        (work / "wan_high.gguf").write_bytes(b"")
        await focus_field(pilot, "model.text_encoder")
        await pilot.press(*"wan_h", "right", "tab")
        await until(pilot, lambda: screen_of(pilot).state.value("model.text_encoder") == "wan_high.gguf", "the file")

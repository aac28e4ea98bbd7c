"""Paths that clients name, and where they may lead."""

import subprocess
from pathlib import Path

import msgspec
import pytest

from daemon.errors import RequestRefused
from daemon.jobs.roots import ANYWHERE, Roots, paths_in
from daemon.settings import SETTINGS_FILE
from presets.errors import UserError
from presets.job.fields import FIELDS
from presets.job.schema import Job
from presets.job.toml_file import absolute_paths, get_value, with_value
from tests.daemon.conftest import Box


def declared(folder: Path, *roots: str) -> Path:
    settings = folder / SETTINGS_FILE
    settings.write_text(f"[daemon]\nroots = {list(roots)}\n")
    return settings


def test_what_lies_below_a_root_wherever_links_lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    inside, outside = tmp_path / "data", tmp_path / "other"
    for folder in (inside / "clips", outside, tmp_path / "data2"):
        folder.mkdir(parents=True)
    (inside / "away").symlink_to(outside)
    (outside / "in").symlink_to(inside)
    (tmp_path / "root").symlink_to(inside)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in (str(inside), "~/data", str(tmp_path / "root")):
        roots = Roots(declared(tmp_path, given), remote=True)
        for good in (inside, inside / "clips/a.mp4", inside / "new/run", outside / "in/clips", f"{inside}/x/../clips"):
            roots.require(good, "x")
        for bad in (outside, inside / "away/b", f"{inside}/../other", tmp_path / "data2", "/", f"{inside}/\0"):
            with pytest.raises(UserError, match=r"lies outside|leads nowhere"):
                roots.require(bad, "x")


def test_none_declared(tmp_path: Path):
    ANYWHERE.require("/etc/passwd", "x")
    Roots(tmp_path / "missing.toml", remote=False).require("/etc/passwd", "x")
    with pytest.raises(UserError, match="may name no path here") as refused:
        Roots(tmp_path / "missing.toml", remote=True).require(tmp_path, "x")
    assert "roots = " in refused.value.fix


@pytest.mark.parametrize("root", ["data", "", "~nobody-of-this-name/x", "\0"])
def test_roots_that_are_none_allow_nothing(tmp_path: Path, root: str):
    settings = tmp_path / SETTINGS_FILE
    settings.write_bytes(b"[daemon]\nroots = " + msgspec.json.encode([root]) + b"\n")
    with pytest.raises(UserError, match="no folder that can be declared"):
        Roots(settings, remote=False).require(tmp_path, "x")


def test_every_path_in_a_job_is_looked_at():
    """Each text field that is made absolute is reported under its name."""
    job = msgspec.convert(
        {
            "job": {"name": "n"},
            "datasets": [{"path": "clips"}],
            "model": {"merge": [{"path": "m"}]},
            "sample": {"prompts": [{"prompt": "p"}]},
        },
        Job,
    )
    found = set()
    for name in FIELDS:
        at = name.replace("datasets.", "datasets[0].").replace("prompts.", "prompts[0].").replace("merge.", "merge[0].")
        try:
            changed = with_value(job, at, "some where")
        except (UserError, ValueError):
            continue
        if get_value(absolute_paths(changed, Path("/base")), at) == "/base/some where":
            assert (at, "/base/some where") in list(paths_in(absolute_paths(changed, Path("/base"))))
            found.add(at)
    assert {"datasets[0].path", "model.path", "sample.prompts[0].ctrl_img", "target.start_low"} <= found


async def test_a_daemon_refuses_what_lies_outside(box: Box):
    box.start("--hold-at", "5")
    path = box.job("one")
    declared(box.dir, str(path.parent))
    async with box.client() as client:
        await client.submit(path)
        await box.wait(client, "one", "running")
        (box.dir / "outside").mkdir()
        with pytest.raises(RequestRefused, match=r"the folder for runs: .* lies outside"):
            await client.submit(box.job("two"), box.dir / "outside")
        with pytest.raises(RequestRefused, match="the job file: /etc/hostname lies outside"):
            await client.submit("/etc/hostname")
        link = path.parent / "link.toml"
        link.symlink_to("/etc/hostname")
        with pytest.raises(RequestRefused, match=r"the job file: .* lies outside"):
            await client.submit(link)
        other = box.job("three")
        other.write_text(other.read_text().replace('"clips"', '"../outside"'))
        with pytest.raises(RequestRefused, match=r"datasets\[0\].path: .*outside lies outside"):
            await client.submit(other)
        await client.stop("one")
        await box.wait(client, "one", "stopped")
        declared(box.dir, str(box.dir / "outside"))  # counts at once
        with pytest.raises(RequestRefused, match=r"the job file: .* lies outside"):
            await client.resume("one")
    assert subprocess.run(["ls", box.dir / "outside"], capture_output=True, check=True).stdout == b""

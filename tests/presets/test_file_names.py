"""File names that are not UTF-8: told once, with the command that renames, and in no message, log or stored file."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from presets.clips.clip_facts import scan_dataset
from presets.errors import JobError, UserError
from presets.facts.gather import gather
from presets.file_names import escaped, is_utf8, rename_command, require_utf8
from presets.job.schema import DatasetPanel
from presets.job.toml_file import load_job, parse_job, with_value
from presets.rules.check import check_job
from tests.helpers.facts import gpu, machine
from tests.helpers.videos import write_clip, write_image

JOB = (
    '[job]\nname = "orbit"\n[[datasets]]\npath = "clips"\nnum_frames = 5\nresolutions = [64]\n[training]\noptimizer ='
    ' "adamw"\n'
)


def odd(folder: Path, name: bytes) -> Path:
    return folder / os.fsdecode(name)


def test_what_is_not_utf8_is_written_out() -> None:
    assert escaped(os.fsdecode(b"caf\xe9.mp4")) == r"caf\xe9.mp4" and not is_utf8(os.fsdecode(b"caf\xe9.mp4"))
    assert escaped("café 猫.mp4") == "café 猫.mp4" and is_utf8("café 猫.mp4")


@pytest.mark.parametrize(
    ("name", "becomes"),
    [
        (b"caf\xe9.mp4", "café.mp4"),
        (b"it's \xe9 \\ $x.mp4", "it's é \\ $x.mp4"),
        (b"\x81\x8d.mp4", None),
        (b"a\nb\xff.mp4", None),
    ],
)
def test_the_command_renames_the_file(tmp_path: Path, name: bytes, becomes: str | None) -> None:
    path = odd(tmp_path, name)
    path.write_bytes(b"x")
    command = rename_command(path)
    assert is_utf8(command) and "\n" not in command
    subprocess.run(["bash", "-c", command], check=True)
    [left] = [p.name for p in tmp_path.iterdir()]
    assert is_utf8(left) and left.endswith(".mp4") and (becomes is None or left == becomes)


def folder_of_odd_names(base: Path) -> Path:
    folder = base / "clips"
    folder.mkdir()
    write_clip(folder / "a.mp4", frames=9)
    write_clip(folder / "x.mp4", frames=9).rename(odd(folder, b"caf\xe9.mp4"))
    odd(folder, b"caf\xe9.txt").write_text("a caption")
    write_image(folder / "x.png").rename(odd(folder, b"\xff.png"))
    odd(folder, b"note\xe9.md").write_text("x")
    odd(folder, b"orphan\xe9.json").write_text("{}")
    odd(folder, b"d\xe9j\xe0").mkdir()
    write_clip(folder / "x.mp4", frames=9).rename(odd(folder, b"d\xe9j\xe0") / "inside.mp4")
    return folder


def test_a_scan_names_each_with_its_rename(tmp_path: Path) -> None:
    folder = folder_of_odd_names(tmp_path)
    found = scan_dataset(DatasetPanel(path="clips"), 0, tmp_path)
    assert [Path(c.path).name for c in found.clips] == ["a.mp4"]
    told = [(p.field, p.severity) for p in found.problems if p.code == "name-not-utf8"]
    assert sorted(told) == sorted(
        (f"{folder}/{name}", "error") for name in (r"caf\xe9.mp4", r"caf\xe9.txt", r"\xff.png", r"d\xe9j\xe0")
    )
    [of_clip] = [p for p in found.problems if p.field.endswith(r"caf\xe9.mp4")]
    assert r"$'" in of_clip.fix and "café.mp4" in of_clip.fix and r"caf\xe9.mp4" in of_clip.message
    [ignored] = [p for p in found.problems if p.code == "files-ignored"]
    assert r"note\xe9.md" in ignored.message
    msgspec.json.encode(found)
    msgspec.msgpack.encode(found)


def test_the_commands_say_it_and_do_not_fall(tmp_path: Path) -> None:
    folder_of_odd_names(tmp_path)
    (tmp_path / "job.toml").write_text(JOB)
    for command in (
        ["check", "job.toml"],
        ["check", "job.toml", "--json"],
        ["new", "--kind", "motion", "--clips", "clips", "--out", "other.toml"],
        ["train", "job.toml"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "wanlora_tui.cli", *command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "HOME": str(tmp_path)},
        )
        said = done.stdout + done.stderr
        assert r"caf\xe9.mp4" in said.replace(r"\\", "\\"), said
        assert "Traceback" not in said and "a bug in wanlora" not in said
        assert done.returncode == (0 if command[0] == "new" else 1)
    for line in (tmp_path / "runs" / "orbit" / "events.jsonl").read_bytes().splitlines():
        msgspec.json.decode(line)


def test_a_dataset_reached_through_a_folder_of_an_odd_name(tmp_path: Path) -> None:
    real = odd(tmp_path, b"d\xe9j\xe0")
    real.mkdir()
    write_clip(real / "a.mp4", frames=9)
    (tmp_path / "clips").symlink_to(real)
    made = parse_job(JOB)
    found = check_job(made, gather(made, tmp_path, out=tmp_path / "runs", machine=machine(gpu()), scenes=False))
    [finding] = [f for f in found if f.code == "name-not-utf8"]
    assert finding.field == rf"{tmp_path}/d\xe9j\xe0"
    msgspec.json.encode(found)


def test_a_job_file_in_a_folder_of_an_odd_name_is_refused(tmp_path: Path) -> None:
    folder = odd(tmp_path, b"d\xe9j\xe0")
    folder.mkdir()
    (folder / "job.toml").write_text(JOB)
    with pytest.raises(UserError, match=r"d\\xe9j\\xe0 is not UTF-8") as caught:
        load_job(folder / "job.toml")
    assert "mv -n" in caught.value.fix and is_utf8(str(caught.value))
    for arguments, cwd in (
        (["check", "job.toml"], folder),
        (["check", folder / "job.toml"], tmp_path),
        (["new", "--kind", "motion", "--clips", folder], tmp_path),
        (["train", "job.toml", "--out", folder], tmp_path),
    ):
        (tmp_path / "job.toml").write_text(JOB)
        done = subprocess.run(
            [sys.executable, "-m", "wanlora_tui.cli", *arguments], cwd=cwd, capture_output=True, text=True
        )
        assert (
            done.returncode == 1
            and done.stderr.startswith("wanlora: ")
            and "is not UTF-8" in done.stderr
            and "Traceback" not in done.stderr
        ), done.stderr
    require_utf8(tmp_path / "fine.toml")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model.path", os.fsdecode(b"b\xe9se")),
        ("datasets[0].path", os.fsdecode(b"\xff")),
        ("sample.accelerator", os.fsdecode(b"l\xf6ra.safetensors")),
    ],
)
def test_no_field_of_a_job_takes_such_a_name(field: str, value: str) -> None:
    with pytest.raises(JobError, match=rf"{field.replace('[', '.').replace(']', '.')}: .*\\x.* is not UTF-8") as caught:
        with_value(parse_job(JOB), field, value)
    assert is_utf8(str(caught.value))

"""Lists and tables within one another, 100 000 deep: a file like any other that is wrong, in every place that reads
one."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from safetensors.numpy import save_file

from daemon.settings import load_settings
from engine.runfolder.checkpoint import verify
from presets.base.lora_metadata import read_scales
from presets.caches.weight_cache import MAGIC, read_cache_header
from presets.errors import UserError
from presets.facts.loras import _of_checkpoint
from presets.job.toml_file import load_job, parse_value, save_job
from presets.planner.measured_rates import _read
from presets.runs.checkpoints import checkpoints_of
from presets.runs.control import parse_control
from presets.runs.run_view import RunView
from tests.helpers.interface.harness import write_job
from wanlora_tui.draft.draft_store import DraftStore
from wanlora_tui.feeds.last_seen import LastSeenFile

DEEP = 100_000
JSON = b'{"x":' + b"[" * DEEP
TOML = {
    "lists": "x = " + "[" * DEEP,
    "whole lists": "x = " + "[" * DEEP + "]" * DEEP,
    "tables": "x = " + "{a = " * DEEP,
    "dotted keys": "x" + ".a" * DEEP + " = 1",
    "headers": "[x" + ".a" * DEEP + "]",
    "a few": "x = " + "[" * 400 + "]" * 400,
}


@pytest.mark.parametrize("text", TOML.values(), ids=TOML)
def test_a_job_file_is_refused(text: str, tmp_path: Path):
    path = tmp_path / "job.toml"
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        load_job(path)
    assert len(str(refused.value)) < 2000
    path.write_text(f'[job]\nname = "a"\n[sample]\n{text}\n[[datasets]]\npath = "clips"\n')
    with pytest.raises(UserError):
        load_job(path)


@pytest.mark.parametrize("text", TOML.values(), ids=TOML)
def test_the_settings_are_refused(text: str, tmp_path: Path):
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"settings\.toml"):
        load_settings(path)


def test_a_value_that_is_typed_is_refused():
    for text in ("[" * DEEP, "{a=" * DEEP):
        with pytest.raises(UserError, match="expected number"):
            parse_value("training.lr", text)


def test_what_lies_where_a_job_is_saved(tmp_path: Path):
    path = write_job(tmp_path)
    job = load_job(path)
    path.write_text("x = " + "[" * DEEP)
    with pytest.raises(UserError, match="not valid TOML"):
        save_job(job, path)


def _header(folder: Path) -> object:
    (folder / "file").write_bytes(MAGIC + len(JSON).to_bytes(8, "little") + JSON)
    return read_cache_header(folder / "file")


def _lora(folder: Path) -> object:
    import numpy as np

    save_file({"a": np.zeros(1, np.float32)}, folder / "file.safetensors", {"lora_adapter_metadata": "[" * DEEP})
    return read_scales(folder / "file.safetensors")


def _checkpoint(folder: Path) -> object:
    for name in ("state.json", "manifest.json"):
        (folder / name).write_bytes(JSON)
    return _of_checkpoint(folder, "high_noise")


def _listed(folder: Path) -> object:
    step = folder / "checkpoints" / "step_000000001"
    step.mkdir(parents=True)
    (step / "manifest.json").write_bytes(JSON)
    return checkpoints_of(folder, RunView())


def _written(read: Callable[[Path], object]) -> Callable[[Path], object]:
    def look(folder: Path) -> object:
        for name in ("tui.json", "file", "manifest.json"):
            (folder / name).write_bytes(JSON)
        return read(folder)

    return look


READERS: dict[str, Callable[[Path], object]] = {
    "draft": _written(lambda folder: DraftStore(folder / "file").load()),
    "last seen": _written(lambda folder: LastSeenFile(folder).kept),
    "rates": _written(lambda folder: _read(folder / "file")),
    "command": lambda _: parse_control(JSON),
    "cache": _header,
    "lora": _lora,
    "checkpoint": _checkpoint,
    "checkpoints": _listed,
    "manifest": _written(verify),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_no_reader_falls(read: Callable[[Path], object], tmp_path: Path):
    """It refuses the file, or counts it as damaged."""
    try:
        read(tmp_path)
    except UserError as e:
        assert len(str(e)) < 2000


def test_readers_of_json_do_fall_where_nobody_catches_it():
    """What the tests above rely on."""
    for decode in (json.loads, msgspec.json.decode):
        with pytest.raises(RecursionError):
            decode(JSON)

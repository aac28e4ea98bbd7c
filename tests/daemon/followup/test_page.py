"""docs/when-it-is-over.md says what is there."""

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from daemon.followup.command import MARKER
from daemon.followup.facts import environment_of
from daemon.followup.secret_files import secret_of
from daemon.queue.entry import Entry
from daemon.settings import IdleSettings, NotifySettings, Settings, WhenSettings, load_settings
from daemon.wire.protocol import JobRecord
from tests.helpers import ROOT

PAGE = (ROOT / "docs" / "when-it-is-over.md").read_text("utf-8")
SETTINGS, COST, SECRETS = re.findall(r"```toml\n(.*?)```", PAGE, re.S)


@pytest.mark.parametrize(
    ("struct", "table"),
    [(WhenSettings, "when"), (IdleSettings, "idle"), (NotifySettings, "notify")],
)
def test_every_setting_stands_there(struct: type[msgspec.Struct], table: str):
    given = tomllib.loads(SETTINGS)[table]
    names = {key for one in given for key in one} if isinstance(given, list) else set(given)
    assert names == {field.name for field in msgspec.structs.fields(struct)}


@pytest.mark.parametrize("table", [field.name for field in msgspec.structs.fields(Settings)])
def test_every_table_stands_there(table: str):
    assert re.search(rf"`?\[{{1,2}}{table}\]", PAGE)
    for field in msgspec.structs.fields(type(getattr(Settings(), table)) if table != "notify" else NotifySettings):
        assert f"`{field.name}`" in PAGE or re.search(rf"^{field.name} = ", PAGE, re.M)


def test_the_examples_are_good(tmp_path: Path):
    (tmp_path / "settings.toml").write_text(SETTINGS + COST)
    (tmp_path / "secrets.toml").write_text(SECRETS)
    (tmp_path / "secrets.toml").chmod(0o600)
    settings = load_settings(tmp_path / "settings.toml")
    found = [secret_of(n, tmp_path / "settings.toml") for n in settings.notify if not n.token_file]
    assert [bool(secret.token) for secret in found] == [True, False, False]


def test_every_variable_stands_there():
    record = JobRecord(id=1, name="a", job_path="/a", out="/r", gpus=[0], state="done")
    given = environment_of(Entry(record=record, order=1), "done", None, running=0, queued=0)
    assert set(re.findall(r"`(WANLORA_\w+)`", PAGE)) == {*given, MARKER}

"""Addresses and tokens: where they may lie, and that no text holds them."""

from pathlib import Path

import pytest

from daemon.followup.secret_files import secret_of
from daemon.settings import NotifySettings, Secret, load_settings
from presets.errors import UserError

URL = "https://hooks.example/T0/B0/very-secret"


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    return write(tmp_path / "settings.toml", '[[notify]]\nkind = "slack"\n', 0o644)


def test_address_and_token_come_from_the_table_of_the_same_name(settings: Path):
    write(settings.with_name("secrets.toml"), f'[slack]\nurl = "{URL}"\n[phone]\ntoken = "tk_1"\n')
    assert secret_of(NotifySettings(kind="slack"), settings) == Secret(URL)
    phone = NotifySettings(kind="ntfy", name="phone", url="http://ntfy.local/topic")
    assert secret_of(phone, settings) == Secret("http://ntfy.local/topic", "tk_1")
    assert "very-secret" not in repr(secret_of(NotifySettings(kind="slack"), settings))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_what_others_can_read_or_write_is_refused(settings: Path, mode: int):
    secrets = write(settings.with_name("secrets.toml"), f'[slack]\nurl = "{URL}"\n', mode)
    with pytest.raises(UserError, match=f"chmod 600 {secrets}") as refused:
        secret_of(NotifySettings(kind="slack"), settings)
    assert "very-secret" not in str(refused.value)
    secrets.chmod(0o600)
    token = write(settings.with_name("token"), "tk_1\n", mode)
    with pytest.raises(UserError, match=f"chmod 600 {token}"):
        secret_of(NotifySettings(kind="webhook", url="http://a.b", token_file="token"), settings)
    token.chmod(0o600)
    assert secret_of(NotifySettings(kind="webhook", url="http://a.b", token_file="token"), settings).token == "tk_1"


@pytest.mark.parametrize(
    "text", ["[slack", '[slack]\nurl = 3\npassword = "very-secret"', '[slack]\nurl = "very-secret"', "\xff", "a" * 99]
)
def test_a_damaged_file_is_named_and_not_quoted(settings: Path, text: str):
    secrets = settings.with_name("secrets.toml")
    secrets.write_bytes(text.encode("latin-1"))
    secrets.chmod(0o600)
    with pytest.raises(UserError, match=str(secrets)) as refused:
        secret_of(NotifySettings(kind="slack"), settings)
    assert "very-secret" not in str(refused.value)


def test_what_is_missing_is_said_with_its_place(settings: Path):
    with pytest.raises(UserError, match=r"has no `url`.*secrets.toml"):
        secret_of(NotifySettings(kind="slack"), settings)
    with pytest.raises(UserError, match="token: no such file"):
        secret_of(NotifySettings(kind="webhook", url="http://a.b", token_file="token"), settings)
    with pytest.raises(UserError, match=r"so/token: no such file\. It is the `token_file` of webhook"):
        secret_of(NotifySettings(kind="webhook", url="http://a.b", token_file="~nobody-is-called-so/token"), settings)
    with pytest.raises(UserError, match="is no name of a file"):
        secret_of(NotifySettings(kind="webhook", url="http://a.b", token_file="a\0b"), settings)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (f'kind = "slack"\nurl = "{URL}"', "secrets.toml"),
        ('kind = "webhook"\nurl = "https://me:very-secret@host/"', "secrets.toml"),
        ('kind = "webhook"\nurl = "ftp://host/"', "http://"),
        ('kind = "webhook"\nurl = "http://ho st/"', "http://"),
        ('kind = "ntfy"\nurl = "http://host/a"\ntoken = "very-secret"', "Tokens are in secrets.toml"),
        ('kind = "mail"', "`to` is missing"),
        ('kind = "mail"\nto = "a@b"\nurl = "http://host"', "sendmail"),
        ('kind = "ntfy"\nurl = "http://host/a"\nto = "a@b"', "belong to mail"),
        ('kind = "fax"', "fax"),
        ('kind = "ntfy"\nurl = "http://host/a"\non = ["finished"]', "finished"),
        ('kind = "mail"\nto = "a@b"\n[[notify]]\nkind = "mail"\nto = "c@d"', "its own `name`"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: Path, line: str, says: str):
    settings.write_text(f"[[notify]]\n{line}\n")
    with pytest.raises(UserError) as refused:
        load_settings(settings)
    assert says in str(refused.value) and "very-secret" not in str(refused.value)

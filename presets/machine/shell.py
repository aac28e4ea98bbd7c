"""What a trainer gets of the shell that submits or resumes its job: the Hub's settings, proxies, certificates, and the
visible GPUs.

This is the one list of them. Everything else of a trainer's environment is the daemon's own. A token or password among
them is handed on and never written down: not into the job table, a log, an event or an error's text.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct, field

from presets.errors import UserError
from presets.file_names import is_utf8
from presets.machine.gpus import visible_gpus
from presets.machine.visible_gpus import VISIBLE
from presets.text import escaped

NAMES = frozenset({
    "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE", "TRANSFORMERS_OFFLINE",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
})  # fmt: skip
HUB, PROXY = "HF_", "_PROXY"  # every name that begins, or ends (in small letters too), with these
SECRET_NAMES = re.compile(r"((?<!IMPLICIT_)TOKEN|SECRET|PASSWORD|API_KEY)$")
LOGIN = re.compile(r"(?:^|://)([^/\s]+)@")  # the user and password of an address
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")
SHORTEST = 4  # characters of a secret that stand out from other text


class Shell(Struct, frozen=True, kw_only=True):
    """What a trainer gets of one."""

    settings: dict[str, str] = field(default_factory=dict)
    # the visible ones, by UUID where the driver tells it; None: the shell says nothing of them
    gpus: list[str] | None = None

    def require_sound(self) -> None:
        """Raises UserError for what no shell of ours sends. Values are not named."""
        for name, value in self.settings.items():
            if not is_setting(name) or "=" in name or "\0" in name + value:
                raise UserError("is no setting that a trainer takes over", where=repr(name)[:100])
        if any(not gpu or "\0" in gpu or "," in gpu for gpu in self.gpus or ()):
            raise UserError("is not the name of a GPU", where=VISIBLE)

    def divided(self) -> tuple["Shell", dict[str, str]]:
        """(what may be written down, the secrets)"""
        secrets = {name: value for name, value in self.settings.items() if is_secret(name, value)}
        return (
            msgspec.structs.replace(
                self, settings={name: value for name, value in self.settings.items() if name not in secrets}
            ),
            secrets,
        )


def shell_here(environ: Mapping[str, str] | None = None, *, nvml: Any = None) -> Shell:
    """What this process's own shell gives to a trainer. `nvml` as in `presets.machine.machine.read_machine`.
    Raises UserError, which holds no value."""
    environ = os.environ if environ is None else environ
    settings = {name: value for name, value in environ.items() if is_setting(name)}
    for name, value in settings.items():
        if not is_utf8(name + value):  # of which no message can be made
            raise UserError(f"the variable {escaped(name)} is not UTF-8", fix="Correct it in your shell, or unset it")
    return Shell(settings=settings, gpus=visible_gpus(environ, nvml=nvml) if VISIBLE in environ else None)


def is_setting(name: str) -> bool:
    return name in NAMES or name.startswith(HUB) or name.upper().endswith(PROXY)


def is_secret(name: str, value: str) -> bool:
    """Whether a setting is a token, or holds one or a password."""
    return bool(
        SECRET_NAMES.search(name) or TOKEN.search(value) or (LOGIN.search(value) and not name.upper().startswith("NO_"))
    )


def environment(own: Mapping[str, str], shell: Shell | None, secrets: Mapping[str, str]) -> dict[str, str]:
    """`own`, with the shell's settings in place of its own ones: what is not set there is not set here. Without a
    shell, `own` as it is."""
    if shell is None:
        return dict(own)
    return {name: value for name, value in own.items() if not is_setting(name)} | shell.settings | dict(secrets)


def without_secrets(text: str, environ: Mapping[str, str] | None = None) -> str:
    """A text for people, such as a library's error, without the secrets that the environment holds."""
    for name, value in (os.environ if environ is None else environ).items():
        if is_setting(name) and is_secret(name, value):
            for secret in sorted(_secrets(name, value), key=len, reverse=True):
                text = text.replace(secret, "***")
    return text


def _secrets(name: str, value: str) -> set[str]:
    logins = LOGIN.findall(value)
    found = {*logins, *(login.partition(":")[2] for login in logins), *TOKEN.findall(value)}
    if SECRET_NAMES.search(name):
        found.add(value.strip())
    return {secret for secret in found if len(secret) >= SHORTEST}

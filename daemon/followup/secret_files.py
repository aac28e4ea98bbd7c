"""The address and the token of one that is told: from secrets.toml or a file of its own, and into no text."""

from pathlib import Path

from daemon.settings import SECRETS_FILE, NotifySettings, Secret, load_secrets, private_text, require_web_address
from presets.errors import UserError
from presets.file_names import expanded


def secret_of(target: NotifySettings, settings: Path) -> Secret:
    """The address and the token of one that is told. `settings`: the file that names it. Raises UserError, which does
    not hold them."""
    secrets = settings.with_name(SECRETS_FILE)
    found = load_secrets(secrets).get(target.label, Secret())
    url, token = found.url or target.url, found.token
    if target.token_file:
        try:
            path = settings.parent / expanded(target.token_file)
            token = private_text(path).strip()
        except ValueError as e:  # of a zero byte
            raise UserError(
                f"the `token_file` of {target.label} is no name of a file: {e}", where=str(settings)
            ) from None
        except FileNotFoundError:
            raise UserError("no such file", where=str(path), fix=f"It is the `token_file` of {target.label}") from None
        if not token:
            raise UserError("holds no token", where=str(path))
    if not url and target.kind != "mail":
        raise UserError(
            f"[[notify]] {target.label} has no `url`",
            where=str(settings),
            fix=f"Write it there, or into {secrets} as `url` in [{target.label}]",
        )
    try:
        if url:
            require_web_address(url)
    except ValueError as e:
        raise UserError(f"[{target.label}]: {e}", where=str(secrets)) from None
    if not token.isascii() or not token.isprintable():
        raise UserError(f"the token of {target.label} holds a character that none has", where=str(settings))
    return Secret(url, token)

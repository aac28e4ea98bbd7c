"""settings.toml as the daemon goes by it: read beside the loop, again when the file has changed, and what is wrong with
it and with the secrets beside it. What may stand there is daemon.settings's."""

import logging
from pathlib import Path

from daemon.background_io import BackgroundIO
from daemon.settings import SECRETS_FILE, Settings, load_secrets, load_settings
from presets.errors import UserError

log = logging.getLogger("daemon")

SECONDS = 1.0  # a disk that takes longer is waited for by nobody: what was read last counts

Stamp = tuple[tuple[int, ...] | None, ...]


class SettingsFile:
    """What the file says; `look` brings it up to date."""

    def __init__(self, path: Path) -> None:
        """Read once at the start, on the loop: nothing is served as yet."""
        self.path = path
        self.value = Settings()  # the defaults while the file cannot be read
        self.troubles: list[str] = []
        self._stamp: Stamp | None = None
        self._take(self._read())

    async def look(self, background: BackgroundIO) -> None:
        try:
            self._take(await background(self._read, what=str(self.path), seconds=SECONDS))
        except UserError as e:
            self.troubles = [f"the settings cannot be read: {e}"]
            self._stamp = None

    def _take(self, read: tuple[Stamp, Settings, list[str]] | None) -> None:
        if read is None:
            return
        before = self.troubles
        self._stamp, self.value, self.troubles = read
        for trouble in self.troubles:
            if trouble not in before:
                log.error("%s", trouble)

    def _read(self) -> tuple[Stamp, Settings, list[str]] | None:
        """None when nothing has changed since the last time."""
        secrets = self.path.with_name(SECRETS_FILE)
        stamp = (_stamp(self.path), _stamp(secrets))
        if stamp == self._stamp:
            return None
        try:
            settings, troubles = load_settings(self.path), []
        except UserError as e:
            settings, troubles = Settings(), [f"the settings cannot be read: {e}"]
        try:
            load_secrets(secrets)
        except UserError as e:
            troubles.append(f"nobody is told of what ends, for the secrets cannot be read: {e}")
        return stamp, settings, troubles


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        facts = path.stat()
    except (OSError, ValueError):
        return None
    return facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size, facts.st_ino, facts.st_mode

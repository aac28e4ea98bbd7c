"""The command line of the daemon of this very installation, as a service runs it, and the variables that it needs."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

# what decides where the daemon looks and keeps things, so that it is the one that this shell's clients find
_KEPT = ("PATH", "PYTHONPATH", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "LD_LIBRARY_PATH")


def daemon_command(dir: Path | None) -> list[str]:
    """`dir`: of the daemon, as for `--dir`. The interpreter's own path, not what it links to: that is another
    installation."""
    return [sys.executable, "-m", "daemon", "--log", *(["--dir", str(dir.absolute())] if dir else [])]


def kept_variables(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    environ = os.environ if environ is None else environ
    return {name: environ[name] for name in _KEPT if environ.get(name)}

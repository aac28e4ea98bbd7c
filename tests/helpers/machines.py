"""Two machines of one kernel: network, host name and /etc/hosts are each one's own, files and processes are shared.
Between them lies one link, which can be cut.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from tests.helpers.waiting import PATIENCE, until

APART = ["unshare", "--net", "--uts", "--mount", "--propagation", "private"]
INTO = ["nsenter", "--net", "--uts", "--mount"]
NAMES = ("alpha", "beta")
ADDRESSES = {"alpha": "10.77.0.1", "beta": "10.77.0.2"}
# as Debian and Ubuntu write it: a machine's own name leads to itself alone. Others are not known by name.
HOSTS = "127.0.0.1 localhost\n127.0.1.1 {name}\n"


def _why_not() -> str:
    missing = [command for command in ("unshare", "nsenter", "ip", "mount") if shutil.which(command) is None]
    if missing:
        return f"{' and '.join(missing)} not here"
    tried = subprocess.run(
        [*APART, "ip", "link", "add", "name", "wltry", "type", "veth"], capture_output=True, check=False
    )
    return "" if tried.returncode == 0 else f"no networks of their own here: {tried.stderr.decode().strip()}"


needs_machines = pytest.mark.skipif(bool(why := _why_not()), reason=why)


class Machines:
    """A context manager; what runs on them is killed at its end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._holders: dict[str, subprocess.Popen[bytes]] = {}
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Machines":
        try:
            for name in NAMES:
                self._holders[name] = subprocess.Popen([*APART, "sleep", "infinity"])
                until(partial(self._is_apart, name))
            ends = [["name", f"wl{name}", "netns", str(self._holders[name].pid)] for name in NAMES]
            subprocess.run(["ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1]], check=True)
            for name in NAMES:
                hosts = self._folder / f"hosts-{name}"
                hosts.write_text(HOSTS.format(name=name))
                self._on(name, f"hostname {name} && mount --bind {hosts} /etc/hosts")
                self._on(name, f"ip link set lo up && ip address add {ADDRESSES[name]}/24 dev wl{name}")
                # who sends to a machine that is cut off hears of it in seconds, and not in a quarter of an hour
                self._on(name, f"ip link set wl{name} up && echo 3 > /proc/sys/net/ipv4/tcp_retries2")
        except BaseException:
            self.__exit__()
            raise
        return self

    def _is_apart(self, name: str) -> bool:
        """Its process has left this machine's network, and become what holds its own."""
        return Path(f"/proc/{self._holders[name].pid}/comm").read_text() == "sleep\n"

    def _on(self, name: str, command: str) -> None:
        subprocess.run([*self._into(name), "sh", "-c", command], check=True)

    def _into(self, name: str) -> list[str]:
        return [*INTO, "--target", str(self._holders[name].pid), "--"]

    def start(self, name: str, command: list[str], log: Path, cwd: Path, given: Mapping[str, str]) -> None:
        with log.open("ab") as out:
            inside = ["env", f"--chdir={cwd}", *command]
            self._started.append(
                subprocess.Popen([*self._into(name), *inside], env={**os.environ, **given}, stdout=out, stderr=out)
            )

    def codes(self) -> list[int]:
        """Of all that was started since, once it has ended."""
        codes = [process.wait(PATIENCE) for process in self._started]
        self._started.clear()
        return codes

    def cut(self) -> None:
        self._on("alpha", "ip link set wlalpha down")

    def join(self) -> None:
        self._on("alpha", "ip link set wlalpha up")

    def __exit__(self, *_: object) -> None:
        for process in (*self._started, *self._holders.values()):
            process.kill()  # a launcher's workers end with it
            process.wait(PATIENCE)

"""daemon install, uninstall and restart: with a systemctl, loginctl and crontab that keep what they are told."""

import os
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.processes.proc import identify, is_alive
from daemon.wire.blocking import ping
from daemon.wire.paths import daemon_paths
from daemon.wire.stop import live_trainers
from presets.errors import UserError
from tests.helpers import NO_GPUS, ROOT
from tests.helpers.interface.harness import answers, environment, running_daemon, until, wanlora, write_job
from tests.helpers.waiting import PATIENCE
from tests.wanlora_tui.test_cli import submit
from wanlora_tui.commands.install import uninstall


class Machine:
    """What the fakes know."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.state, self.path, self.units = folder, f"{folder}/bin", home / "config/systemd/user"
        self.unit = self.units / "wanlora.service"

    def calls(self, program: str = "systemctl") -> list[str]:
        file = self.state / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.partition(" ")[2] for line in lines if line.startswith(program)]

    def pid(self) -> int:
        return int((self.state / "pids/wanlora.service").read_text())


@pytest.fixture
def machine(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A user with a systemd, and with nothing of cron."""
    folder = home / "fakes"
    (folder / "bin").mkdir(parents=True)
    (folder / "linger").write_text("no")
    found = Machine(folder, home)
    monkeypatch.setenv("FAKE_SYSTEMD", str(folder))
    monkeypatch.setenv("PYTHONPATH", f"{NO_GPUS}:{ROOT}")
    give(found, "systemctl", "loginctl")
    monkeypatch.setenv("PATH", f"{found.path}:/usr/bin:/bin")
    yield found
    shutil.rmtree(found.units, ignore_errors=True)  # what the end of a test starts, systemd does not


def give(machine: Machine, *names: str) -> None:
    for name in names:
        program = Path(machine.path, name)
        # not by a link: its own name is what it goes by
        program.write_text(
            f'#!/bin/sh\nexec {sys.executable} -c \'import sys; sys.argv[0] = "{name}"\n'
            f'from tests.helpers.fake_systemctl import main\nsys.exit(main())\' "$@"\n'
        )
        program.chmod(0o755)


def test_the_unit_can_be_seen_and_nothing_is_done(machine: Machine):
    said = wanlora("daemon", "install", "--print")
    assert said.returncode == 0 and machine.calls() == [] and not machine.unit.exists()
    unit = said.stdout
    assert f'ExecStart="{sys.executable}" "-m" "daemon" "--log"\n' in unit
    for line in ("KillMode=process", "Restart=on-failure", "OOMPolicy=continue", "WantedBy=default.target"):
        assert f"\n{line}\n" in unit
    assert f'Environment="XDG_STATE_HOME={os.environ["XDG_STATE_HOME"]}"\n' in unit


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_itself_finds_nothing_wrong_with_the_unit(machine: Machine, tmp_path: Path):
    unit = tmp_path / "wanlora.service"
    unit.write_text(wanlora("daemon", "install", "--print").stdout)
    said = subprocess.run(
        ["systemd-analyze", "verify", "--user", unit], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    about_it = [line for line in said.stderr.splitlines() if "wanlora" in line]
    assert about_it == [] and said.returncode == 0, said


def test_installed_it_is_started_by_systemd_and_by_every_command(machine: Machine, home: Path):
    said = wanlora("daemon", "install")
    assert said.returncode == 0, said
    pid = ping().pid
    assert pid == machine.pid() and f"systemd runs the daemon (pid {pid})" in said.stderr
    assert "Lingering is off" in said.stderr and "loginctl enable-linger" in said.stderr
    assert (machine.state / "enabled/wanlora.service").exists()
    assert "serving" in (home / "state/wanlora/daemon.log").read_text()
    assert '"supervised": true' in wanlora("daemon", "status", "--json").stdout

    (machine.state / "linger").write_text("yes")
    before = machine.unit.stat().st_mtime_ns
    again = wanlora("daemon", "install")
    assert again.returncode == 0 and "Unchanged" in again.stderr and "Lingering is on" in again.stderr
    assert ping().pid == pid and machine.unit.stat().st_mtime_ns == before

    stopped = wanlora("daemon", "stop")
    assert stopped.returncode == 0 and "wanlora daemon uninstall" in stopped.stderr and not answers(None)
    assert wanlora("daemon", "start").returncode == 0
    assert ping().pid == machine.pid() != pid

    pid = machine.pid()
    renewed = wanlora("daemon", "restart")
    assert renewed.returncode == 0 and f"(pid {pid}) has ended" in renewed.stderr
    assert ping().pid == machine.pid() != pid and "--user restart wanlora.service" in machine.calls()

    old = home / "old-python"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    old.chmod(0o755)
    assert "another installation" not in renewed.stderr
    machine.unit.write_text(machine.unit.read_text().replace(sys.executable, str(old)))
    said = wanlora("daemon", "restart")
    assert said.returncode == 0 and "another installation" in said.stderr and "daemon install" in said.stderr, said
    pid = machine.pid()
    moved = wanlora("daemon", "install")
    assert moved.returncode == 0 and "Wrote" in moved.stderr and ping().pid == machine.pid() != pid

    gone = wanlora("daemon", "uninstall")
    assert gone.returncode == 0 and not answers(None) and not machine.unit.exists()
    assert not (machine.state / "enabled/wanlora.service").exists()
    assert "Kept: the job table" in gone.stderr and (home / "state/wanlora/jobs.sqlite3").exists()
    nothing = wanlora("daemon", "uninstall")
    assert nothing.returncode == 0 and "No unit" in nothing.stderr


def test_one_that_runs_outside_is_handed_over_with_its_trainer(machine: Machine, home: Path, tmp_path: Path):
    with running_daemon(home / "d") as folder:
        submit(folder, write_job(tmp_path, "long", steps=100_000, pace_ms=20))
        pid, [trainer, *_] = ping(folder).pid, until(lambda: live_trainers(folder), "the trainer")
        process = identify(trainer)
        refused = wanlora("daemon", "uninstall", "--purge", "--yes", "--dir", folder)
        assert refused.returncode == 1 and "long is running, so the job table stays" in refused.stderr
        said = wanlora("daemon", "install", "--dir", folder)
        assert said.returncode == 0 and "has taken over 1 that train" in said.stderr, said
        assert ping(folder).pid != pid and process is not None and is_alive(process)
        renewed = wanlora("daemon", "restart", "--dir", folder)
        assert renewed.returncode == 0 and "has taken over 1 trainer" in renewed.stderr and is_alive(process)
        gone = wanlora("daemon", "uninstall", "--dir", folder)
        assert gone.returncode == 0 and is_alive(process), gone
        refused = wanlora("daemon", "uninstall", "--purge", "--yes", "--dir", folder)
        assert refused.returncode == 1 and f"(pid {trainer})" in refused.stderr
        assert wanlora("daemon", "start", "--dir", folder).returncode == 0
        assert wanlora("cancel", "long", "--dir", folder).returncode == 0
        assert wanlora("wait", "long", "--dir", folder).returncode == 1


def test_without_systemd_it_is_cron(machine: Machine, home: Path):
    (machine.state / "broken").write_text("Failed to connect to bus: No medium found")
    (machine.state / "crontab").write_text("5 * * * * mine\n")
    give(machine, "crontab")
    said = wanlora("daemon", "install")
    assert said.returncode == 0 and "No medium found" in said.stderr and "@reboot line to your crontab" in said.stderr
    mine, line = (machine.state / "crontab").read_text().splitlines()
    assert mine == "5 * * * * mine" and line.startswith("@reboot ") and f"{sys.executable} -m daemon --log" in line
    assert answers(None) and not machine.unit.exists()
    assert "Unchanged" in wanlora("daemon", "install").stderr
    assert wanlora("daemon", "stop").returncode == 0
    command = line.removeprefix("@reboot ").rpartition(" # ")[0]
    with subprocess.Popen(["/bin/sh", "-c", command], env=environment()) as process:
        until(lambda: answers(None), "the daemon of that line")
        gone = wanlora("daemon", "uninstall")
        assert gone.returncode == 0 and "Removed the @reboot line" in gone.stderr
        process.wait(PATIENCE)
    assert (machine.state / "crontab").read_text() == "5 * * * * mine\n" and not answers(None)


def test_a_cron_that_refuses_this_user_is_in_nobodys_way(machine: Machine, home: Path, monkeypatch: pytest.MonkeyPatch):
    """As cron.deny has it. And a path that is not UTF-8 is written as it is."""
    plain = os.environ["PATH"]
    monkeypatch.setenv("PATH", f"{plain}:/odd\udcff")
    crontab = Path(machine.path, "crontab")
    crontab.write_text("#!/bin/sh\necho 'You (me) are not allowed to use this program (crontab)' >&2\nexit 1\n")
    crontab.chmod(0o755)
    assert wanlora("daemon", "install").returncode == 0
    assert b":/odd\xff" in machine.unit.read_bytes()
    assert "Unchanged" in wanlora("daemon", "install").stderr
    gone = wanlora("daemon", "uninstall")
    assert gone.returncode == 0 and "not allowed" in gone.stderr and "Kept: the job table" in gone.stderr, gone
    assert not answers(None)
    monkeypatch.setenv("PATH", plain)
    (machine.state / "broken").write_text("Failed to connect to bus: No medium found")
    said = wanlora("daemon", "install")
    assert said.returncode == 1 and "cron is not to be had either" in said.stderr, said
    assert said.stdout.startswith("env ") and said.stdout.endswith("-m daemon --log &\n")
    assert wanlora("daemon", "uninstall").returncode == 1


def test_without_both_it_prints_the_line_and_says_that_nothing_was_done(machine: Machine, home: Path):
    Path(machine.path, "systemctl").unlink()
    machine.path = ""
    env = environment(PATH=f"{machine.state}/bin")
    said = wanlora("daemon", "install", env=env)
    assert said.returncode == 1 and "Nothing was installed" in said.stderr and "There is no systemd" in said.stderr
    assert said.stdout.startswith("env PATH=") and said.stdout.endswith("-m daemon --log &\n")
    assert not answers(None)


def test_what_is_to_be_removed_is_asked_for(machine: Machine, home: Path):
    assert wanlora("daemon", "start").returncode == 0
    state = daemon_paths().state
    refused = wanlora("daemon", "uninstall", "--purge")
    assert refused.returncode == 1 and "nobody can be asked" in refused.stderr and answers(None)
    said = wanlora("daemon", "uninstall", "--purge", "--yes")
    assert said.returncode == 0 and not state.exists() and not answers(None), said


def test_what_could_not_be_removed_is_not_called_removed(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    state = daemon_paths().state
    state.mkdir(parents=True)
    with monkeypatch.context() as instead, pytest.raises(UserError, match="could not be removed whole"):
        instead.setenv("PATH", "/nowhere")
        instead.setattr("shutil.rmtree", lambda path, ignore_errors: None)  # a disk that takes nothing
        uninstall(Namespace(dir=None, purge=True, yes=True))
    assert "Removed" not in capsys.readouterr().err


def test_restart_without_systemd_and_without_a_daemon(home: Path):
    said = wanlora("daemon", "restart")
    assert said.returncode == 0 and "No daemon ran" in said.stderr
    pid = ping().pid
    said = wanlora("daemon", "restart")
    assert said.returncode == 0 and f"(pid {pid}) has ended" in said.stderr and ping().pid != pid

"""The connection to one machine, for as long as a command or the interface needs it: kept up by a thread of its own.

One ssh process (wanlora_tui.remote.ssh_line) carries all of it; when that ends or falls silent, another takes over.
Where wanlora is there, and what its daemon says, is wanlora_tui.remote.far_wanlora's.
"""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

from daemon.errors import DaemonError, NotRunning
from daemon.wire.blocking import ping
from daemon.wire.paths import daemon_paths, make_private
from presets.errors import UserError
from wanlora_tui.remote.far_process import FarProcess, LineLost
from wanlora_tui.remote.far_shell import running
from wanlora_tui.remote.far_wanlora import (
    FarStatus,
    KnownHosts,
    check_host,
    read_status,
    require_ours,
    start_script,
    status_script,
)
from wanlora_tui.remote.link_state import Kind, LinkState
from wanlora_tui.remote.liveness import Liveness
from wanlora_tui.remote.ssh_line import FORWARD_REFUSED, SshLine

LISTEN_SECONDS = 0.2
PAUSES = (0.2, 0.5, 1.0)  # seconds before a line is dialled anew; the last one again and again, then
LONG_AFTER, LONG_PAUSE = 120.0, 10.0  # seconds: a machine that is gone for long is asked less often
FIND_SECONDS = 60.0  # for wanlora there to be found and to say how its daemon is
START_SECONDS = 120.0  # for its daemon to be started
MOST_SAID = 64 * 2**20  # bytes of one answer
SILENT_DIAL_SECONDS = 30.0  # for a connection that asks nobody
# What ssh says when it would have to ask a person: trying again by itself could only get the user locked out
_REFUSED = ("Permission denied", "Too many authentication failures")
_ASKING = (*_REFUSED, "Host key verification failed")


class Connection:
    """Its parts may be used from any thread. `connected` makes it.

    folder: of the daemon there, for `Client(folder, here=False)`. wanlora: path of the command there. status: what its
    daemon said when we connected. has_started: the daemon there was started by us.
    """

    def __init__(self, host: str, folder: Path, known: KnownHosts, given: str = "") -> None:
        self.host, self.folder, self.wanlora, self.status = host, folder, "", FarStatus(running=False)
        self.has_started = False
        self.state = LinkState("connecting", time.monotonic())
        self._given, self._known = given, known
        self._here = daemon_paths(folder)
        self._line: SshLine | None = None
        self._dialled, self._daemon_pause = 0, PAUSES[-1]
        self._closing, self._asked, self._ask_wanted = threading.Event(), threading.Event(), threading.Event()
        self._forwarding = threading.Lock()
        self._keeper = threading.Thread(target=self._keep, daemon=True, name="ssh line")

    # --- what runs there ---------------------------------------------------------------------------------------

    def start(self, argv: Sequence[str], stdin: bytes | IO[bytes] | int | None = None) -> FarProcess:
        """Run a program there; its stdout can be read as it comes. Use as a context. Raises LineLost."""
        return FarProcess(self._up(), running(argv), stdin)

    def run(
        self, script: str, stdin: bytes | IO[bytes] | None = None, timeout: float | None = None
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run a shell's script there to its end. Its stdout and stderr are whole and its own. Raises LineLost, also
        when it takes longer than `timeout` seconds."""
        with FarProcess(self._up(), script, stdin, timeout) as process:
            said = process.stdout.read(MOST_SAID + 1)
            if len(said) > MOST_SAID:
                raise DaemonError(f"{self.host} answers with more than {MOST_SAID // 2**20} MiB")
            code = process.wait()
            process.require_in_time()
            if process.line_broke(code):
                process.require(code)
            return subprocess.CompletedProcess(script, code, said, process.stderr.encode())

    def call(self, argv: Sequence[str], *, tty: bool = False) -> int:
        """Run a program there on this process's stdin, stdout and stderr, and give its exit code (255 when the line
        broke). `tty`: on a terminal there too."""
        return subprocess.call(self._up().session(running(argv), "-tt" if tty else "-T"))

    def command(self, argv: Sequence[str], *flags: str) -> list[str]:
        """The ssh command that runs a program there, for whom its streams as they are do. Raises LineLost."""
        return self._up().session(running(argv), *flags)

    def wait(self, seconds: float) -> bool:
        """Wait until the line is up, at most so long; whether it is."""
        end = time.monotonic() + seconds
        while self._line is None and time.monotonic() < end and not self._closing.wait(0.05):
            pass
        return self._line is not None

    def _up(self) -> SshLine:
        line = self._line
        if line is None or self._closing.is_set():
            raise LineLost(f"no connection to {self.host}{': ' + self.state.words if self.state.words else ''}")
        return line

    # --- opening and closing -----------------------------------------------------------------------------------

    def open(self, *, daemon: bool = True) -> None:
        """Dial; ssh may ask on the terminal. Then find wanlora and its daemon there, and bring its sockets here (unless
        the `daemon` is not needed). Raises UserError."""
        make_private(self._here.runtime)
        self.ask()
        self._find_daemon()
        if not daemon:
            self.status = FarStatus(running=False)
            return
        if not self.status.running:
            self.start_daemon()
        try:
            ping(self.folder)
        except NotRunning:
            refused = [words for words in self._up().words if FORWARD_REFUSED in words]
            if not refused:
                raise
            raise UserError(
                f"the daemon's sockets cannot be brought here: {refused[-1]}",
                where=self.host,
                fix="Does its sshd allow it? AllowStreamLocalForwarding must not be `no`",
            ) from None

    def ask(self) -> None:
        """Dial anew now, and let ssh ask on the terminal what it must. Blocks until that is over. Raises UserError with
        ssh's own words."""
        self._asked.clear()
        self._ask_wanted.set()
        if self._keeper.ident is None:
            self._keeper.start()
        while not self._asked.wait(0.2) and self._keeper.is_alive():
            pass
        if self._line is None:
            words = self.state.words or "ssh failed"
            raise UserError(words, where=self.host, fix=f"Try: ssh {self.host}{_for_a_key(self.host, words)}")

    def start_daemon(self) -> bool:
        """Start the daemon there unless one runs; whether it had to be. Raises UserError with its words."""
        done = self.run(start_script(self.wanlora), timeout=START_SECONDS)
        words = done.stderr.decode().strip()
        if done.returncode:
            raise UserError(
                f"the daemon there did not start: {words or f'exit code {done.returncode}'}",
                where=self.host,
                fix=f"Try: ssh {self.host} {self.wanlora} daemon start",
            )
        self._find_daemon()
        if not self.status.running:
            raise UserError("the daemon there was started and has ended", where=self.host, fix=f"Its words: {words}")
        self.has_started = "Started the daemon" in words
        self.state = replace(self.state, daemon="")
        return self.has_started

    def close(self) -> None:
        self._closing.set()
        if self._keeper.is_alive():
            self._keeper.join()

    def _find_daemon(self) -> None:
        """Where wanlora is there, and what its daemon says now. Raises UserError."""
        remembered = self._known.wanlora_of(self.host)
        done = self.run(status_script(self._given, self.wanlora or remembered), timeout=FIND_SECONDS)
        try:
            self.wanlora, self.status = read_status(
                self.host, done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode(), self._given
            )
        except UserError:
            self._known.remember(self.host, "")
            raise
        if not self._given:
            self._known.remember(self.host, self.wanlora)
        if self.status.running:
            require_ours(self.host, self.wanlora, self.status)
            self._forward(self._up())

    # --- keeping it up: all in the keeper's thread -------------------------------------------------------------

    def _keep(self) -> None:
        """Until the connection is closed. The master's end comes with that of the thread that started it, so this one
        starts them all."""
        spare: SshLine | None = None  # being dialled
        failures, lost_at, dial_at, ask_daemon_at = 0, time.monotonic(), 0.0, 0.0
        alive, asks = Liveness(_now()), False  # asks: a line that was dialled silently would have had to ask a person
        try:
            while not self._closing.is_set():
                if self._ask_wanted.is_set():
                    spare = _ended(spare)
                    self._dial_asking()
                    alive, failures = Liveness(_now()), 0
                    self._ask_wanted.clear()
                    self._asked.set()
                    continue
                line, now = self._line, _now()
                if line is None:
                    (spare.listen if spare else self._closing.wait)(LISTEN_SECONDS / 2)
                elif line.has_ended:
                    line.close()
                    self._line, lost_at, dial_at, failures = None, now, now, 0
                    self._set("lost", line.last_words or "ssh ended")
                    continue
                else:
                    line.listen(LISTEN_SECONDS / 2)
                    now = _now()
                    alive.look(now, line.echoed, line.received)
                    if alive.wants_ping(now):
                        line.ping()
                    if silent := alive.silent_for(now, beside=spare is not None and spare.is_up):
                        if self.state.kind == "connected":
                            self._set("silent", "")
                            lost_at, dial_at, failures = now - silent, now, 0
                            continue
                    elif self.state.kind in ("silent", "must ask"):
                        spare = _ended(spare)
                        self._set("connected", "")
                    if line.refused_forward and now >= ask_daemon_at:
                        line.refused_forward, ask_daemon_at = False, now + self._daemon_pause
                        threading.Thread(target=self._look_for_daemon, daemon=True, name="daemon there").start()
                doubtful = self.state.kind == "connected" and alive.is_doubtful(now)
                if self.state.kind in ("connected", "must ask") and not doubtful:
                    spare = _ended(spare)  # it has answered after all
                    continue
                if spare is None:
                    if now >= dial_at and not (doubtful and asks):
                        spare, spare_until = self._new_line(ask=False), now + SILENT_DIAL_SECONDS
                    continue
                if spare.is_up and not doubtful:
                    self._take_over(spare)
                    spare, alive, failures = None, Liveness(_now()), 0
                elif spare.has_ended or now > spare_until:
                    words = spare.last_words
                    spare = _ended(spare)
                    words = words or "no answer in time"
                    asks = _must_ask(words)
                    if not doubtful:
                        self._set("must ask" if asks else self.state.kind, words)
                    pause = PAUSES[min(failures, len(PAUSES) - 1)] if now - lost_at < LONG_AFTER else LONG_PAUSE
                    failures, dial_at = failures + 1, now + pause
                elif line is not None:
                    spare.listen(LISTEN_SECONDS / 2)
        finally:
            _ended(spare)
            _ended(self._line)
            self._line = None
            self._asked.set()

    def _new_line(self, *, ask: bool) -> SshLine:
        self._dialled += 1
        return SshLine(self.host, self.folder / f"c{self._dialled}", ask=ask)

    def _dial_asking(self) -> None:
        line = self._new_line(ask=True)
        if line.dial(self._closing.is_set):
            self._take_over(line)
        elif self._line is None:
            words = line.last_words or "ssh failed"
            # a network that is away still is tried again by itself
            self._set("lost" if self.state.kind == "lost" and not _must_ask(words) else "must ask", words)

    def _take_over(self, line: SshLine) -> None:
        """From the line there was, if any, with what came through it."""
        old, self._line = self._line, line
        _ended(old)
        try:
            if self.status.control:
                self._forward(line)
            self._set("connected", "")
        except UserError as e:
            self._line = _ended(line)
            self._set("lost", e.what)

    def _forward(self, line: SshLine) -> None:
        """Bring the daemon's sockets here, from where they are by now. Raises UserError."""
        with self._forwarding:
            for local, remote in ((self._here.control, self.status.control), (self._here.feed, self.status.feed)):
                line.forward(local, remote)

    def _look_for_daemon(self) -> None:
        """Somebody came to a socket that leads nowhere: the daemon there has ended, or is elsewhere now."""
        try:
            self._find_daemon()
            problem = "" if self.status.running else "no daemon runs there"
        except UserError as e:
            problem = e.what
        self._daemon_pause = min(2 * self._daemon_pause, LONG_PAUSE) if problem else PAUSES[-1]
        self.state = replace(self.state, daemon=problem)

    def _set(self, kind: Kind, words: str) -> None:
        state = self.state
        since = state.since if state.kind == kind else time.monotonic()
        words = words or ("" if kind == "connected" else state.words)
        self.state = replace(state, kind=kind, since=since, words=words)


def _ended(line: SshLine | None) -> SshLine | None:
    """What is left of a line that is not wanted any more: nothing."""
    if line is not None:
        line.close()
    return None


def _must_ask(words: str) -> bool:
    return any(w in words for w in _ASKING)


def _for_a_key(host: str, words: str) -> str:
    """How one is let in without a question, to follow what to try; "" where ssh has failed of something else."""
    if not any(w in words for w in _REFUSED):
        return ""
    return f". ssh-copy-id {host} puts your key there, and ssh-add asks its passphrase once for all"


def _now() -> float:
    """Goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.time()


@contextmanager
def connected(host: str, state_dir: Path, wanlora: str = "", *, daemon: bool = True) -> Iterator[Connection]:
    """A connection to the machine that ssh calls `host`, with the sockets of its daemon, which is started if none runs.
    ssh may ask on the terminal while it opens.

    `state_dir`: where is kept what is known of hosts. `wanlora`: its path there, if the user says it. `daemon`: without
    it, none is started and no socket comes here. Raises UserError.
    """
    from wanlora_tui.remote.private_folder import private_folder

    check_host(host)
    with _ends_in_order(), private_folder() as folder:
        connection = Connection(host, folder, KnownHosts(state_dir), wanlora)
        try:
            connection.open(daemon=daemon)
            yield connection
        finally:
            connection.close()


@contextmanager
def _ends_in_order() -> Iterator[None]:
    """SIGTERM and the terminal's end leave as an error does, unless somebody else sees to them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    ours = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def ask_on_terminal(there: Connection) -> str:
    """Dial, with ssh's questions on the terminal, which is free for them. Why there is no connection, if there is none.
    Ctrl+C ends ssh, not us."""
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        print(f"Connecting to {there.host}. Ctrl+C goes back.", file=sys.stderr)
        there.ask()
        return ""
    except UserError as e:
        return str(e)
    finally:
        signal.signal(signal.SIGINT, before)

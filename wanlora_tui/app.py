"""The terminal interface: jobs, wizard, dashboard, over one connection to the daemon.

What is on a screen is wanlora_tui.screens's; keys are wanlora_tui.actions's.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

from textual import events, work
from textual.actions import SkipAction
from textual.app import SystemCommand
from textual.screen import Screen
from textual.widget import Widget

from daemon.errors import DaemonError
from daemon.wire.client import Client
from daemon.wire.find import find
from daemon.wire.protocol import ENDED_STATES, LIVE_STATES, JobRecord
from daemon.wire.start import ensure_running
from presets.runs.run_view import RunView
from wanlora_tui.actions import all_actions, bindings
from wanlora_tui.feeds.job_list import JobList
from wanlora_tui.feeds.last_seen import LastSeenFile
from wanlora_tui.feeds.run_feed import RunFeed
from wanlora_tui.feeds.status_lights import daemon_light
from wanlora_tui.feeds.submitter import Submitter
from wanlora_tui.output.formatting import count, ending, home_path
from wanlora_tui.screens.dashboard import DashboardScreen
from wanlora_tui.screens.help import HelpScreen
from wanlora_tui.screens.jobs import JobsScreen
from wanlora_tui.terminal.streams import has_shell
from wanlora_tui.themes import ReadableThemes, readable
from wanlora_tui.threads import ReadingThreads
from wanlora_tui.widgets.key_order import KeysInOrder
from wanlora_tui.widgets.redraw_throttle import Changed

TWICE_SECONDS = 3.0  # within which a second Ctrl-C leaves
SAVE_SECONDS = 5.0  # between two writes of what was seen: a killed TUI forgets no more than that
RETRY_SECONDS = 1.0
# actions that mean something on the focused widget only
OF_WIDGETS = ("list.", "table.", "text.", "form.", "picker.", "dialog.")


@runtime_checkable
class Looks(Protocol):
    """A screen that reads clips: the wizard, which is imported only when it is opened."""

    @property
    def looking(self) -> bool: ...

    def end_looks(self) -> None: ...


class WanloraApp(ReadableThemes, KeysInOrder):
    """`job`: open its dashboard at once. `host`: the machine at the other end of a tunnel, whose daemon is not ours to
    start.

    `close_when_done`: seconds after the end of that job until the app closes by itself; 0 keeps it open.
    """

    CSS_PATH = "app.tcss"
    TITLE = "wanlora"
    BINDINGS = bindings("app.help", "app.daemon", "app.interrupt", "app.suspend")

    def __init__(
        self,
        daemon_dir: Path | None,
        state_dir: Path,
        *,
        image: type[Widget],
        job: JobRecord | None = None,
        host: str = "",
        close_when_done: float = 0.0,
    ) -> None:
        super().__init__()
        self.daemon_dir, self.host = daemon_dir, host
        self.last_seen = LastSeenFile(state_dir)
        self.farewell: list[str] = []  # lines for the terminal, once the screens are closed
        self._state_dir, self._image, self._job, self._close_when_done = state_dir, image, job, close_when_done
        self.client = Client(daemon_dir, here=not host)
        self._job_list = JobList()
        self._interrupted_at = 0.0
        self._close_at: float | None = None

    def on_mount(self) -> None:
        # ours read, or start the daemon, which needs nobody to continue
        asyncio.get_running_loop().set_default_executor(ReadingThreads())
        if (theme := readable(self.last_seen.kept.theme)) in self.available_themes:
            self.theme = theme
        self.theme_changed_signal.subscribe(self, lambda theme: self._remember_theme(theme.name))
        self.push_screen(JobsScreen(self.client, self._job_list))
        if self._job is not None:
            self.open_dashboard(self._job)
        self.set_interval(SAVE_SECONDS, self._save_last_seen)
        if self._close_when_done:
            self.set_interval(1.0, self._close_after_end)
        self._connect()

    def _close_after_end(self) -> None:
        """Count down once the job is over; any key ends the count and leaves the app to its user."""
        if not self._close_when_done or not isinstance(self.screen, DashboardScreen) or not self.screen.is_over:
            return
        now = time.monotonic()
        if self._close_at is None:
            self._close_at = now + self._close_when_done
            self.notify(
                f"It is over. This closes in {self._close_when_done:.0f} seconds; any key keeps it open.",
                timeout=self._close_when_done,
            )
        elif now >= self._close_at:
            self.action_leave()

    async def on_event(self, event: events.Event) -> None:
        if isinstance(event, events.Key) and self._close_at is not None:
            self._close_when_done, self._close_at = 0.0, None
            self.clear_notifications()
        await super().on_event(event)

    def _remember_theme(self, name: str) -> None:
        self.last_seen.kept.theme = name

    def _save_last_seen(self) -> None:
        try:
            self.last_seen.save()
        except OSError as e:
            self.notify(f"What you have seen cannot be remembered: {e}", severity="warning")

    # --- the daemon --------------------------------------------------------------------------------------------

    @work(exclusive=True, group="job list")
    async def _connect(self) -> None:
        """Start the daemon if none runs, then follow it for as long as the app lives."""
        async with AsyncExitStack() as stack:
            # closed with the app; it is not entered, because the daemon may yet have to start
            stack.push_async_exit(self.client)
            while True:
                try:
                    if not self.host and await asyncio.to_thread(ensure_running, self.daemon_dir):
                        self.notify("Started the daemon. It keeps running when you leave.")
                    await self._job_list.follow(self.client, self._job_list_changed)
                except DaemonError as e:
                    self._job_list.problem = str(e)
                    self._job_list_changed()
                await asyncio.sleep(RETRY_SECONDS)

    @work(exclusive=True, group="daemon")
    async def action_daemon(self) -> None:
        """Say where the daemon is; start it when it does not answer."""
        light = daemon_light(self._job_list.beat_age)
        try:
            if light.level != "bad" or self.host:
                self.notify(
                    f"{light.text}\n{home_path(str(find(self.daemon_dir).where.runtime))}", title="Daemon", timeout=8
                )
            elif await asyncio.to_thread(ensure_running, self.daemon_dir):
                self.notify("Started again; it has taken over what runs.", title="Daemon")
            else:
                self.notify("It runs, and answers again.", title="Daemon")
        except DaemonError as e:
            self.notify(str(e), title="Daemon", severity="error", timeout=15)

    def _job_list_changed(self) -> None:
        for screen in self.screen_stack:
            if isinstance(screen, JobsScreen):
                screen.post_message(Changed())

    # --- screens -----------------------------------------------------------------------------------------------

    def open_dashboard(self, record: JobRecord) -> None:
        self.push_screen(
            DashboardScreen(RunFeed(self.client, record, self.last_seen), self.client, self._image, host=self.host)
        )

    def close_dashboard(self) -> None:
        self.pop_screen()

    @work
    async def open_wizard(self) -> None:
        """From the wizard to the dashboard of the job that the daemon accepted."""
        if self.host:
            self.notify(
                f"The wizard looks at clips and GPUs of this machine. Run wanlora on {self.host} for it.",
                severity="warning",
                timeout=10,
            )
            return
        from wanlora_tui.screens.wizard import WizardScreen

        # A daemon in a directory of its own keeps everything there, the half-filled wizard too.
        draft = self._state_dir / "draft.json" if self.daemon_dir is not None else None
        record = await self.push_screen_wait(
            WizardScreen(draft, Submitter(self.client, self.daemon_dir, self._job_list))
        )
        if isinstance(record, JobRecord):
            self.open_dashboard(record)

    # --- help and leaving --------------------------------------------------------------------------------------

    def action_help(self) -> None:
        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen(getattr(self.screen, "HELP_GROUP", "")))

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The palette: Textual's own, and every registered action that the screen can take now."""
        yield from super().get_system_commands(screen)
        offered = {binding.binding.id for binding in screen.active_bindings.values() if binding.enabled}
        for action in all_actions():
            if action.id in offered and not action.id.startswith(OF_WIDGETS):
                yield SystemCommand(action.label, action.help, partial(screen.run_action, action.action))

    def action_interrupt(self) -> None:
        """Ctrl+C: out of a long look at clips at once, for the draft is kept; elsewhere it copies what is selected, or
        asks once."""
        if any(isinstance(screen, Looks) and screen.looking for screen in self.screen_stack):
            self.action_leave()
            return
        if getattr(self.focused, "selected_text", "") or self.screen.get_selected_text():
            raise SkipAction
        now = time.monotonic()
        if now - self._interrupted_at < TWICE_SECONDS:
            self.action_leave()
        self._interrupted_at = now
        self.notify("Press Ctrl+C again to leave. Jobs keep running without you.", timeout=TWICE_SECONDS)

    def action_leave(self) -> None:
        """Close the screens and stop nothing; the farewell says how to come back."""
        for screen in self.screen_stack:
            if isinstance(screen, Looks):
                screen.end_looks()
        if isinstance(self.screen, DashboardScreen):
            self.farewell += parting(self.screen.run.record, self.screen.run.view, self.host)
        else:
            live = sum(r.state in LIVE_STATES for r in self._job_list.records.values())
            if live:
                self.farewell.append(
                    f"{count(live, 'job')} {'keeps' if live == 1 else 'keep'} running. Come back with: wanlora"
                )
        self.exit()

    def action_suspend_process(self) -> None:
        """Ctrl+Z: stop, with all that the shell sees as this command, until its `fg`."""
        if not has_shell():
            self.notify(
                "There is no shell to go back to: wanlora is what this terminal was opened for.", severity="warning"
            )
        else:
            os.killpg(os.getpgrp(), signal.SIGTSTP)
            self.call_next(self.refresh, layout=True)

    async def action_quit(self) -> None:
        """Ctrl+Q and the palette's Quit: the same as leaving."""
        self.action_leave()

    def on_unmount(self) -> None:
        self._save_last_seen()


def parting(record: JobRecord, view: RunView, host: str) -> list[str]:
    """What to say about a job on the way out. A run that has said it is done may have a process that is still
    closing."""
    if view.state == "done" and record.state in LIVE_STATES and view.attempt == record.attempt:
        return [f"{record.name}: done."]
    if record.state in ENDED_STATES:
        return [ending(record.name, record.state, record.outcome)]
    does = "waits in the queue" if record.state == "queued" else "keeps training"
    return [f"{record.name} {does}. Come back with: wanlora attach {record.name}{' --host ' + host if host else ''}"]

"""The terminal interface: jobs, wizard, dashboard, over one connection to the daemon.

What is on a screen is wanlora_tui.screens's; keys are wanlora_tui.actions's.
"""

import asyncio
import gc
import os
import signal
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual import events, work
from textual.actions import SkipAction
from textual.app import ScreenStackError, SystemCommand
from textual.command import CommandPalette
from textual.screen import Screen
from textual.widget import Widget

from daemon.errors import DaemonError
from daemon.settings import CostSettings
from daemon.wire.client import Client
from daemon.wire.find import find
from daemon.wire.protocol import LIVE_STATES, JobRecord
from daemon.wire.start import ensure_running
from presets.errors import UserError
from presets.runs.run_view import RunView
from wanlora_tui.actions import bindings
from wanlora_tui.actions.own_actions import OwnActions
from wanlora_tui.feeds.ends import Ends, parting
from wanlora_tui.feeds.job_list import JobList
from wanlora_tui.feeds.last_seen import LastSeenFile
from wanlora_tui.feeds.run_feed import RunFeed
from wanlora_tui.feeds.status_lights import Light, daemon_light, link_light
from wanlora_tui.feeds.submitter import Submitter
from wanlora_tui.output.far_words import advised
from wanlora_tui.output.formatting import count, ending, home_path
from wanlora_tui.screens.jobs import JobsScreen
from wanlora_tui.screens.kinds import Looks, OverARun
from wanlora_tui.terminal.attention import attention, wished
from wanlora_tui.terminal.pictures import Drawer, drawer
from wanlora_tui.terminal.streams import has_shell
from wanlora_tui.themes import ReadableThemes, readable
from wanlora_tui.threads import ReadingThreads
from wanlora_tui.widgets.key_order import KeysInOrder
from wanlora_tui.widgets.pasting import chosen_text
from wanlora_tui.widgets.redraw_throttle import Changed, is_seen

# What is imported here is what the first frame shows: all else comes when it is opened.
if TYPE_CHECKING:
    from wanlora_tui.draft.draft_store import Draft
    from wanlora_tui.remote.connection import Connection
    from wanlora_tui.transfer.pictures import FarPictures

TWICE_SECONDS = 3.0  # within which a second Ctrl-C leaves
SAVE_SECONDS = 5.0  # between two writes of what was seen: a killed TUI forgets no more than that
RETRY_SECONDS = 1.0
AHEAD_SECONDS = 0.5  # after the list of jobs has come: what a dashboard needs is imported before anybody opens one


class WanloraApp(OwnActions, ReadableThemes, KeysInOrder):
    """`image`: the widget that draws pictures, or what gives it once one is to be drawn. `job`: open its dashboard at
    once. `host`: the machine whose daemon it is, `there` the connection to it.

    `close_when_done`: seconds after the end of that job until the app closes by itself; 0 keeps it open. `cost`: what
    the machine costs.
    """

    CSS_PATH = "app.tcss"
    TITLE = "wanlora"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (120, "-wide")]  # noqa: RUF012  (Textual's own declaration)
    BINDINGS = bindings("app.help", "app.palette", "app.daemon", "app.ssh", "app.interrupt", "app.suspend")

    def __init__(
        self,
        daemon_dir: Path | None,
        state_dir: Path,
        *,
        image: Drawer,
        job: JobRecord | None = None,
        host: str = "",
        there: "Connection | None" = None,
        only_wizard: bool = False,
        close_when_done: float = 0.0,
        cost: CostSettings | None = None,
    ) -> None:
        super().__init__()
        self._cost = cost
        self.there = there
        self._only_wizard = only_wizard
        self.daemon_dir, self.host = daemon_dir, host
        self._pictures = self._pictures_of(there) if there else None  # else they are here
        self.last_seen = LastSeenFile(state_dir)
        self.farewell: list[str] = []  # lines for the terminal, once the screens are closed
        self._state_dir, self._image, self._job, self._close_when_done = state_dir, image, job, close_when_done
        self.client = Client(daemon_dir, here=not host)
        self._job_list, self._ends = JobList(), Ends()
        self._ends.fresh([job] if job else [])
        self._interrupted_at = float("-inf")
        self._close_at: float | None = None
        self._ahead = False  # whether what may be opened next is imported

    def on_mount(self) -> None:
        # ours read, or start the daemon, which needs nobody to continue
        asyncio.get_running_loop().set_default_executor(ReadingThreads())
        if (theme := readable(self.last_seen.kept.theme)) in self.available_themes:
            self.theme = theme
        self.theme_changed_signal.subscribe(self, lambda theme: self._remember_theme(theme.name))
        self._jobs = JobsScreen(self.client, self._job_list, link=self._link, cost=self._cost, host=self.host)
        self.push_screen(self._jobs)
        if self._job is not None:
            self.open_dashboard(self._job)
        if self._only_wizard:
            self.open_wizard()
        self.set_interval(SAVE_SECONDS, self._save_last_seen)
        if self._close_when_done:
            self.set_interval(1.0, self._close_after_end)
        self._connect()

    @work(thread=True, exit_on_error=False)
    def _import_ahead(self) -> None:
        """Read the code of the dashboard and of its pictures while nobody waits for it; then the start is over."""
        import wanlora_tui.screens.compare
        import wanlora_tui.screens.contact_sheet
        import wanlora_tui.screens.dashboard  # noqa: F401

        if not gc.isenabled():  # run_app's
            gc.freeze()  # code stays: no collection looks through it, nor holds up a key for that
            gc.enable()

    def _close_after_end(self) -> None:
        """Count down once the job is over; any key ends the count and leaves the app to its user."""
        if not self._close_when_done or not isinstance(self.screen, OverARun) or not self.screen.is_over:
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

    @cached_property
    def image(self) -> type[Widget]:
        """The widget that draws pictures as this terminal can."""
        return drawer(self._image)

    def _pictures_of(self, there: "Connection") -> "FarPictures":
        from wanlora_tui.transfer.over_ssh import far_files
        from wanlora_tui.transfer.pictures import FarPictures

        return FarPictures(self.host, partial(far_files, there), self._picture_came)

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
        # as the user sees it: the dashboard has a feed of its own, which may have heard less
        seen = self.screen.run if isinstance(self.screen, OverARun) else self._job_list
        light = daemon_light(seen.beat_age)
        try:
            if light.level == "bad" and self.there is not None:
                if await asyncio.to_thread(self.there.start_daemon):
                    self.notify(f"Started again on {self.host}; it has taken over what runs.", title="Daemon")
                else:
                    self.notify(f"It runs on {self.host}.", title="Daemon")
            elif light.level != "bad" or self.host:
                self.notify(
                    f"{light.text}\n{home_path(str(find(self.daemon_dir).where.runtime))}", title="Daemon", timeout=8
                )
            elif await asyncio.to_thread(ensure_running, self.daemon_dir):
                self.notify("Started again; it has taken over what runs.", title="Daemon")
            else:
                self.notify("It runs, and answers again.", title="Daemon")
        except UserError as e:
            self.notify(str(e), title="Daemon", severity="error", timeout=15)

    # --- another machine ---------------------------------------------------------------------------------------

    def _link(self, beat_age: float | None) -> Light | None:
        return link_light(self.host, self.there.state, beat_age, time.monotonic()) if self.there else None

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "answer_ssh":
            return self.there is not None and self.there.state.kind in ("lost", "must ask")
        return super().check_action(action, parameters)

    def action_answer_ssh(self) -> None:
        """Leave the screens to ssh for as long as it asks."""
        from wanlora_tui.remote.connection import ask_on_terminal

        assert self.there is not None
        with self.suspend():  # nothing may be raised in there: the screens would not come back
            problem = ask_on_terminal(self.there)
        if problem:
            self.notify(problem, title="ssh", severity="error", timeout=15)

    def _job_list_changed(self) -> None:
        if not self._ahead:
            self._ahead = True
            self.set_timer(AHEAD_SECONDS, self._import_ahead)
        for ended in self._ends.fresh(self._job_list.records.values()):
            self._call_user(ended)
        for screen in self.screen_stack:
            if isinstance(screen, JobsScreen) and is_seen(screen):
                screen.post_message(Changed())

    def _call_user(self, ended: JobRecord) -> None:
        """A job is done or has failed, and its user may be looking elsewhere."""
        settings, problem = wished(None if self.host else self.daemon_dir)
        if problem:
            self.notify(problem, title="Settings", severity="warning", timeout=10)
        if self._driver is not None:
            self._driver.write(attention("wanlora", ending(ended.name, ended.state, ended.outcome), settings))
            self._driver.flush()

    # --- screens -----------------------------------------------------------------------------------------------

    def open_dashboard(self, record: JobRecord) -> None:
        """Whoever comes back from it finds its job under the cursor."""
        from wanlora_tui.screens.dashboard import DashboardScreen
        from wanlora_tui.transfer.here import HereFiles
        from wanlora_tui.transfer.over_ssh import FarPieces, far_files, fetch_newest

        self._jobs.go_to(record)
        pieces = FarPieces(self.there) if self.there else None
        self.push_screen(
            DashboardScreen(
                RunFeed(self.client, record, self.last_seen, heard=self._job_list.heard, pieces=pieces),
                self.client,
                lambda: self.image,
                host=self.host,
                link=self._link,
                pictures=self._pictures,
                fetch=partial(fetch_newest, self.there) if self.there else None,
                cost=self._cost,
                files=partial(far_files, self.there) if self.there else HereFiles,
            )
        )

    def _picture_came(self) -> None:
        """Called in another thread."""
        with suppress(ScreenStackError):  # the screens are being closed
            for screen in self.screen_stack:
                screen.post_message(Changed())

    def close_dashboard(self) -> None:
        self.pop_screen()

    @work
    async def open_wizard(self, begin_with: "Draft | None" = None) -> None:
        """From the wizard to the dashboard of the job that the daemon accepted. `begin_with`: a copy of a job."""
        if self.there is not None:
            await self._wizard_there(self.there)
            return
        from wanlora_tui.screens.wizard import WizardScreen

        # A daemon in a directory of its own keeps everything there, the half-filled wizard too.
        draft = self._state_dir / "draft.json" if self.daemon_dir is not None else None
        record = await self.push_screen_wait(
            WizardScreen(draft, Submitter(self.client, self.daemon_dir, self._job_list), begin_with)
        )
        if self._only_wizard:
            if isinstance(record, JobRecord):
                self.farewell += parting(record, RunView(), self.host)
            self.exit()
        elif isinstance(record, JobRecord):
            self.open_dashboard(record)

    async def _wizard_there(self, there: "Connection") -> None:
        """The wizard runs where the clips and the GPU are, on this terminal; then the dashboard of the job that came of
        it."""
        from wanlora_tui.remote.far_process import SSH_FAILED
        from wanlora_tui.remote.far_terminal import on_terminal

        try:
            before = {record.id for record in await self.client.jobs()}
            with self.suspend():  # and nothing else is done meanwhile: nobody may draw
                code = on_terminal(there, ["wizard"])
            if code == SSH_FAILED:
                self.notify(f"The connection to {self.host} broke. What was filled in is kept there.", severity="error")
                return  # no daemon can be asked; a job that came of it comes into the list with the next connection
            new = [record for record in await self.client.jobs() if record.id not in before]
        except DaemonError as e:
            self.notify(str(e), severity="error", timeout=15)
            return
        if new:
            self.open_dashboard(max(new, key=lambda record: record.id))

    def notify(self, message: str, **how: Any) -> None:
        super().notify(advised(message), **how)

    # --- help and leaving --------------------------------------------------------------------------------------

    def action_help(self) -> None:
        from wanlora_tui.screens.help import HelpScreen, of_dialog, of_screen

        screen = self.screen
        if isinstance(screen, HelpScreen):
            return
        if screen.is_modal:
            self.push_screen(HelpScreen(*of_dialog(screen)))
        else:
            group = getattr(screen, "HELP_GROUP", "")
            self.push_screen(HelpScreen(of_screen(group), self.refused(group)))

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The palette: what the screen can do now, and every job. A dialog is answered and a wizard left first, which
        asks about its draft."""
        yield from super().get_system_commands(screen)
        if not screen.is_modal and not isinstance(screen, Looks):
            for record in self._job_list.records.values():
                yield SystemCommand(record.name, f"Job {record.id}: open it", partial(self.open_dashboard, record))

    def action_interrupt(self) -> None:
        """Ctrl+C: out of a long look at clips at once, for the draft is kept; elsewhere it copies what is selected, or
        asks once."""
        if any(isinstance(screen, Looks) and screen.looking for screen in self.screen_stack):
            self.action_leave()
            return
        if chosen_text(self.focused) or self.screen.get_selected_text():
            raise SkipAction
        if isinstance(self.screen, CommandPalette):  # it would cover the notice
            self.pop_screen()
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
        if isinstance(self.screen, OverARun):
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
            words = "There is no shell to go back to: wanlora is what this terminal was opened for."
            self.notify(words, severity="warning")
        else:
            os.killpg(os.getpgrp(), signal.SIGTSTP)
            self.call_next(self.refresh, layout=True)

    async def action_quit(self) -> None:
        """Ctrl+Q and the palette's Quit: the same as leaving."""
        self.action_leave()

    def on_unmount(self) -> None:
        self._save_last_seen()
        if self._pictures is not None:
            self._pictures.close()

"""All jobs: what runs, what waits, what is over. One job in full is wanlora_tui.screens.dashboard's."""

import asyncio
from pathlib import Path

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import Input, Static

from daemon.errors import DaemonError
from daemon.settings import CostSettings
from daemon.wire.client import Client
from daemon.wire.protocol import ENDED_STATES, RUNNING_STATES, JobRecord
from presets.runs.run_view import RunView
from presets.text import escaped
from wanlora_tui.actions import bindings
from wanlora_tui.feeds.job_list import ORDERS, JobList, matches
from wanlora_tui.feeds.run_times import FREE
from wanlora_tui.feeds.status_lights import Link, daemon_light, no_link
from wanlora_tui.output.far_words import advised, is_away
from wanlora_tui.output.formatting import count, duration
from wanlora_tui.output.hanging import folded
from wanlora_tui.screens.copying import copy_path
from wanlora_tui.screens.first_layout import FirstLayout
from wanlora_tui.screens.jobs.copies import JobCopies
from wanlora_tui.screens.jobs.detail import JobDetail, facts_below
from wanlora_tui.screens.jobs.requests import possible
from wanlora_tui.screens.jobs.table import JobTable, Rows
from wanlora_tui.terminal.desktop import can_open, open_folder
from wanlora_tui.widgets.fitting_footer import FittingFooter
from wanlora_tui.widgets.pasting import OneLine
from wanlora_tui.widgets.redraw_throttle import Changed, Throttle, is_seen

WIDE = 120  # columns from which on the job under the cursor stands beside the list
DWELL = 0.25  # seconds that the cursor stays on a job before its run is asked for
SORTS = {"name": "name", "state": "state", "submitted": "newest"}  # header -> order
EMPTY = """\
No jobs yet.

Press n for the wizard. It asks what the LoRA should teach and
where your clips are, recommends every setting for this machine,
and starts the training.

To see the whole way first, on made-up clips, leave with q and try:
  wanlora demo"""
# left out of the footer where it has no room, the first of them first
SPARE = ("jobs.later", "jobs.earlier", "jobs.remove", "jobs.rename", "jobs.duplicate", "jobs.sort", "jobs.submit",
         "jobs.hold", "jobs.filter", "jobs.resume", "jobs.cancel")  # fmt: skip
MORE = ("jobs.copy", "jobs.folder", "jobs.priority", "jobs.remove_ended")


ON_A_JOB = frozenset(possible(JobRecord(id=0, name="", job_path="", out="", gpus=[], state="queued")))


class FilterInput(OneLine):
    """Letters to find jobs by. Esc shows all jobs again, Enter goes back to the list."""

    BINDINGS = bindings("jobs.unfilter")


class JobsScreen(JobCopies, FirstLayout):
    """Renders a JobList; sends what is asked of a job, and of its place. `cost`: what the machine costs."""

    HELP_GROUP = "jobs"
    AUTO_FOCUS = "JobTable"
    BINDINGS = bindings(
        "jobs.new",
        "jobs.submit",
        "jobs.filter",
        "jobs.sort",
        "jobs.remove_ended",
        "jobs.unfilter",
        "jobs.quit",
    )
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (WIDE, "-wide")]  # noqa: RUF012  (Textual's own declaration)

    def __init__(
        self,
        client: Client,
        job_list: JobList,
        *,
        link: Link = no_link,
        cost: CostSettings | None = None,
        host: str = "",
    ) -> None:
        super().__init__(client, job_list)
        self._link, self._cost, self._host = link, cost or FREE, host
        self._order, self._filter = ORDERS[0], ""
        self._wanted = -1  # the job that the cursor goes to as soon as it is listed
        self._said: dict[str, object] = {}  # what the lines show
        self._offered: tuple[object, ...] = ()
        self._looked_up: tuple[int, int] = (-1, -1)  # job and revision of the run that was asked for
        self._view: RunView | None = None  # what came of that
        self._problem = ""
        self._listed = False  # whether the daemon's list has been drawn
        self._drawing = Throttle(self, self._render_all)

    def compose(self) -> ComposeResult:
        yield Static(id="jobs-title")
        yield FilterInput(placeholder="part of a name or state", compact=True, id="jobs-filter")
        with Horizontal(id="jobs-body"):
            yield JobTable(id="jobs-table")
            yield JobDetail(cost=self._cost, id="job-beside")
        yield Static(advised(EMPTY), id="jobs-empty", markup=False)
        yield Static(id="jobs-detail", markup=False)
        yield FittingFooter(spare=SPARE, more=MORE)

    @property
    def takes_keys(self) -> bool:
        """Keys that come before the list mean its first job; for a daemon that does not answer they do not wait."""
        return super().takes_keys and (self._listed or bool(self._job_list.problem))

    def on_mount(self) -> None:
        self._rows = Rows(self.query_one(JobTable))
        self.query_one(JobTable).focus()
        self._ticking = self.set_interval(1.0, self._tick)  # all is drawn when it comes into view

    def on_screen_suspend(self) -> None:
        if not is_seen(self):  # below a dialog the light goes on
            self._ticking.pause()

    def on_screen_resume(self) -> None:
        self._ticking.resume()
        self._render_all()

    @on(JobTable.Resized)
    @on(Changed)
    def _draw_soon(self) -> None:
        self._drawing.ask()

    def _tick(self) -> None:
        """What time alone changes: the daemon's light, what can be asked of it, and what counts down or runs."""
        self._render_title()
        self._render_detail()
        self._render_keys()

    def _say(self, selector: str, content: str | Text) -> None:
        """Only what has changed is drawn, and laid out anew where it has more or fewer lines."""
        before = self._said.get(selector)
        if before != content:
            self._said[selector] = content
            others = before is None or str(before).count("\n") != str(content).count("\n") or not str(before)
            self.query_one(selector, Static).update(content, layout=others or not str(content))

    # --- rendering ---------------------------------------------------------------------------------------------

    def _render_all(self) -> None:
        records = self._job_list.arranged(self._order, self._filter)
        loaded = self._job_list.beat_age is not None
        empty = not self._job_list.records
        self.query_one("#jobs-empty").display = loaded and empty
        self.query_one("#jobs-body").display = not empty
        self.query_one(FilterInput).display = bool(self._filter) or self.query_one(FilterInput).has_focus
        at = self._wanted if any(r.id == self._wanted for r in records) else self._current_id()
        self._rows.forget_others(self._job_list.records)
        self._rows.show(records, self._job_list.views, at)
        self._wanted = -1 if at == self._wanted else self._wanted
        self._render_title(len(records))
        self._render_detail()
        self._render_keys()
        self._listed = self._listed or loaded

    def _render_title(self, listed: int | None = None) -> None:
        records = self._job_list.records
        running = sum(r.state in RUNNING_STATES for r in records.values())
        queued = sum(r.state == "queued" for r in records.values())
        paused = self._job_list.paused_jobs
        waits = f" ({'' if paused == queued else f'{paused} '}paused)" if paused else ""
        broken_off = sum(r.interrupted and r.state in ENDED_STATES for r in records.values())
        heard = self._job_list.beat_age
        title = f"{count(len(records), 'job')}, {running} running, {queued} queued{waits}"
        if broken_off:
            title += f", {broken_off} interrupted"
        if self._filter:
            number = len(self._rows.order) if listed is None else listed
            title = f"{number} of {title}"
        order = (
            "" if self._order == ORDERS[0] else f"   by {self._order}" if self._order != "newest" else "   newest first"
        )
        light = (self._link(heard) or daemon_light(heard)).line
        self._say(
            "#jobs-title",
            Text.assemble(
                (f"wanlora on {escaped(self._host)}  " if self._host else "wanlora  ", "bold"),
                title if heard is not None else "looking for the daemon",
                (order, "italic"),
                "   ",
                light,
                no_wrap=True,
                overflow="ellipsis",
            ),
        )

    def _render_detail(self) -> None:
        record, wide = self._current(), self.has_class("-wide")
        lines = [line for line in (self._job_list.problem, *self._job_list.troubles) if line]
        if (left := self._job_list.idle_in) is not None:
            lines.append(
                f"Nothing runs or is about to: the idle command runs in {duration(left)}, unless a job is submitted"
            )
        if record is not None:
            view = self._job_list.views.get(record.id)
            names = {job: r.name for job in record.after if (r := self._job_list.records.get(job)) is not None}
            if wide:
                view = view or (self._view if self._looked_up[0] == record.id else None)
                self.query_one(JobDetail).show(record, view, names, self._problem)
                self._look_up(record)
            else:
                lines += facts_below(record, view, names, self._cost)
        else:
            if self._filter:
                lines.append(f"No job has '{self._filter}' in its name or state. Esc shows all again.")
            if wide:
                self.query_one(JobDetail).show(None, None, {}, "")
        width = max(1, self.size.width - 2)  # its padding
        said = [line for text in lines if text for line in folded(Text(escaped(advised(text))), width)]
        self._say("#jobs-detail", "\n".join(line.plain for line in said))

    def _render_keys(self) -> None:
        """The footer follows what is possible."""
        record = self._current()
        about = self._order, self._filter, self.daemon_answers
        offered = (*(possible(record).items() if record else ()), *about, *self._ended())
        if offered != self._offered:
            self._offered = offered
            self.refresh_bindings()

    def _ended(self) -> tuple[bool, ...]:
        return (any(r.state in ENDED_STATES for r in self._job_list.records.values()),)

    # --- the run of the job under the cursor, in a wide terminal ------------------------------------------------

    def _look_up(self, record: JobRecord) -> None:
        """Ask for its fold, unless it is there: those of running jobs are followed anyway."""
        wanted = (record.id, record.revision)
        if record.id in self._job_list.views or not record.attempt or wanted == self._looked_up:
            return
        if wanted[0] != self._looked_up[0]:
            self._view, self._problem = None, ""
        self._looked_up = wanted
        self._fetch_run(record)

    @work(exclusive=True, group="run under the cursor")
    async def _fetch_run(self, record: JobRecord) -> None:
        await asyncio.sleep(DWELL)
        try:
            _, self._view = await self._client.snapshot(record.id)
            self._problem = ""
        except DaemonError as e:
            self._problem, self._looked_up = str(e), (record.id, -1)  # asked again with the next tick
        self._render_detail()

    @on(JobTable.Highlighted)
    def _row_moved(self) -> None:
        self._render_detail()
        self._render_keys()

    @on(JobTable.Chosen)
    def _row_clicked(self) -> None:
        self.action_open_job()

    # --- the job under the cursor ------------------------------------------------------------------------------

    def go_to(self, record: JobRecord) -> None:
        """Put the cursor on a job, which the daemon may not have told of yet; a filter that hides it is taken away."""
        self._wanted = record.id
        if self._filter and not matches(record, self._filter):
            self._filter = ""
            self.query_one(FilterInput).value = ""
        if is_seen(self):
            self.post_message(Changed())

    def _current_id(self) -> int:
        row, order = self.query_one(JobTable).cursor_row, self._rows.order
        return order[row] if 0 <= row < len(order) else -1

    def _current(self) -> JobRecord | None:
        return self._job_list.records.get(self._current_id())

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """What would do nothing for this job, or here, is not offered."""
        if not self.is_mounted:
            return True
        if not super().check_action(action, parameters):
            return False
        record = self._current()
        match action:
            case "show_all_jobs":
                return bool(self._filter) or self.query_one(FilterInput).has_focus
            case "filter_jobs" | "sort_jobs":
                return len(self._job_list.records) > 1
            case "remove_ended":
                return any(self._ended())
            case "new_job" if is_away():  # the wizard runs there
                return self.daemon_answers
            case "submit_file":
                return not is_away()
            case "duplicate_job" if is_away():
                return False
            case "open_folder":
                return record is not None and not is_away() and can_open()
            case "move_job" if self._order != ORDERS[0] or self._filter:
                return False
        if record is None:
            return action not in ON_A_JOB
        return possible(record).get(action, True)

    def action_open_job(self) -> None:
        record = self._current()
        if record is not None:
            self.app.open_dashboard(record)  # type: ignore[attr-defined]

    def action_new_job(self) -> None:
        self.app.open_wizard()  # type: ignore[attr-defined]

    def action_copy_path(self) -> None:
        record = self._current()
        if record is not None:
            copy_path(self, Path(record.run_dir), title=f"Run folder of {record.name}")

    def action_open_folder(self) -> None:
        record = self._current()
        if record is not None and (problem := open_folder(Path(record.run_dir))):
            self.notify(problem, severity="warning")

    # --- order and filter --------------------------------------------------------------------------------------

    def action_sort_jobs(self) -> None:
        self._sort(ORDERS[(ORDERS.index(self._order) + 1) % len(ORDERS)])

    @on(JobTable.HeadingClicked)
    def _heading_clicked(self, event: JobTable.HeadingClicked) -> None:
        order = SORTS.get(event.column, ORDERS[0])
        self._sort(ORDERS[0] if order == self._order else order)

    def _sort(self, order: str) -> None:
        self._order = order
        self._render_all()

    def action_filter_jobs(self) -> None:
        field = self.query_one(FilterInput)
        field.display = True
        field.focus()

    def action_show_all_jobs(self) -> None:
        self.query_one(FilterInput).value = ""
        self._filtered("")

    @on(Input.Changed, "#jobs-filter")
    def _typed(self, event: Input.Changed) -> None:
        self._filter = event.value.strip()
        self._drawing.ask()

    @on(Input.Submitted, "#jobs-filter")
    def _entered(self, event: Input.Submitted) -> None:
        self._filtered(event.value.strip())

    @on(Input.Blurred, "#jobs-filter")
    def _left(self) -> None:
        if self.app.app_focus:  # else the terminal has lost the focus, and gives it back
            self.query_one(FilterInput).display = bool(self._filter)

    def _filtered(self, text: str) -> None:
        self._filter = text
        self.query_one(JobTable).focus()
        self._render_all()

"""All jobs: what runs, what waits, what is over. One job in full is wanlora_tui.screens.dashboard's."""

from collections.abc import Awaitable, Callable

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Static

from daemon.errors import DaemonError
from daemon.wire.client import Client
from daemon.wire.protocol import LIVE_STATES, RESUMABLE_STATES, RUNNING_STATES, JobRecord
from presets.errors import UserError
from wanlora_tui.actions import bindings
from wanlora_tui.feeds.job_list import JobList
from wanlora_tui.feeds.status_lights import daemon_light
from wanlora_tui.output.formatting import count, duration, home_path, seconds_each, shorten, state_text
from wanlora_tui.screens.confirm import Confirm
from wanlora_tui.screens.resume import resume_run
from wanlora_tui.widgets.redraw_throttle import Changed, Throttle

COLUMNS = (
    ("name", "NAME"),
    ("state", "STATE"),
    ("step", "STEP"),
    ("expert", "EXPERT"),
    ("loss", "LOSS"),
    ("pace", "S/STEP"),
    ("eta", "ETA"),
    ("gpu", "GPU"),
)
NARROW_NAME, WIDE_NAME = 15, 40  # 15: every column of a run of thousands of steps is whole in 80 columns
EMPTY = """\
No jobs yet.

Press n for the wizard. It asks what the LoRA should teach and
where your clips are, recommends every setting for this machine,
and starts the training.

To see the whole way first, on made-up clips, leave with q and try:
  wanlora demo"""


class JobTable(DataTable[Text]):
    """The table with the keys that act on the job under the cursor."""

    BINDINGS = bindings(
        "jobs.open", "jobs.stop", "jobs.resume", "jobs.cancel", "list.down", "list.up", "table.top", "table.bottom"
    )


class JobsScreen(Screen[None]):
    """Renders a JobList; sends stop, resume and cancel."""

    HELP_GROUP = "jobs"
    BINDINGS = bindings("jobs.new", "jobs.quit")

    def __init__(self, client: Client, job_list: JobList) -> None:
        super().__init__()
        self._client, self._job_list = client, job_list
        self._order: list[int] = []
        self._drawing = Throttle(self, self._render_all)

    def compose(self) -> ComposeResult:
        yield Static(id="jobs-title")
        yield JobTable(cursor_type="row", cell_padding=1, zebra_stripes=False, id="jobs-table")
        yield Static(EMPTY, id="jobs-empty", markup=False)
        yield Static(id="jobs-detail", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        table = self.query_one(JobTable)
        for key, label in COLUMNS:
            table.add_column(label, key=key)
        table.focus()
        self.set_interval(1.0, self._render_all)
        self._render_all()

    def on_screen_resume(self) -> None:
        self._render_all()

    @on(Changed)
    def _draw_soon(self) -> None:
        self._drawing.ask()

    def _render_all(self) -> None:
        records = self._job_list.ordered()
        table, loaded = self.query_one(JobTable), self._job_list.beat_age is not None
        self.query_one("#jobs-empty").display = loaded and not records
        table.display = bool(records)
        running = sum(r.state in RUNNING_STATES for r in records)
        queued = sum(r.state == "queued" for r in records)
        title = (
            f"{count(len(records), 'job')}, {running} running, {queued} queued" if loaded else "looking for the daemon"
        )
        self.query_one("#jobs-title", Static).update(
            Text.assemble(
                ("wanlora  ", "bold"),
                title,
                "   ",
                daemon_light(self._job_list.beat_age).line,
                no_wrap=True,
                overflow="ellipsis",
            )
        )
        self._render_rows(table, records)
        self._render_detail()
        self.refresh_bindings()

    def _render_rows(self, table: JobTable, records: list[JobRecord]) -> None:
        order = [r.id for r in records]
        rows = {r.id: self._cells(r) for r in records}
        if order == self._order:
            for job_id, cells in rows.items():
                for (column, _), cell in zip(COLUMNS, cells, strict=True):
                    if table.get_cell(str(job_id), column) != cell:
                        table.update_cell(str(job_id), column, cell, update_width=True)
            return
        at = self._current_id()
        table.clear()
        for job_id, cells in rows.items():
            table.add_row(*cells, key=str(job_id))
        self._order = order
        if at in order:
            table.move_cursor(row=order.index(at), animate=False)

    def _cells(self, r: JobRecord) -> list[Text]:
        view = self._job_list.views.get(r.id)
        live = view is not None and r.state in RUNNING_STATES
        step = view.step if view is not None and live else r.step
        position = f" ({r.position})" if r.position else ""
        state = (
            "‖ paused" if view is not None and live and view.phase.name == "paused" else state_text(r.state) + position
        )
        cells = [
            shorten(r.name, WIDE_NAME if self.size.width >= 100 else NARROW_NAME),
            state,
            f"{step}/{r.steps or (view.steps if view else 0)}",
        ]
        if view is not None and live:
            training = view.phase.name == "training"
            cells += [
                (view.expert.removesuffix("_noise") if training else view.phase.name) or "-",
                f"{view.loss:.4f}" if view.step else "-",
                seconds_each(view.seconds_per_step) if view.seconds_per_step else "-",
                duration(view.eta_seconds) if r.state == "running" and view.seconds_per_step else "-",
            ]
        else:
            cells += ["-", "-", "-", "-"]
        return [Text(c, no_wrap=True) for c in (*cells, ",".join(map(str, r.gpus)))]

    def _render_detail(self) -> None:
        record = self._current()
        lines = [self._job_list.problem] if self._job_list.problem else []
        if record is not None:
            view = self._job_list.views.get(record.id)
            paused = (
                view.phase.text
                if view is not None and record.state in RUNNING_STATES and view.phase.name == "paused"
                else ""
            )
            lines += [home_path(record.run_dir), paused, record.outcome]
        self.query_one("#jobs-detail", Static).update("\n".join(line for line in lines if line))

    @on(DataTable.RowHighlighted)
    def _row_moved(self) -> None:
        self._render_detail()
        self.refresh_bindings()

    @on(DataTable.RowSelected)
    def _row_clicked(self) -> None:
        self.action_open_job()

    # --- the job under the cursor ------------------------------------------------------------------------------

    def _current_id(self) -> int:
        row = self.query_one(JobTable).cursor_row
        return self._order[row] if 0 <= row < len(self._order) else -1

    def _current(self) -> JobRecord | None:
        return self._job_list.records.get(self._current_id())

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """A key that would do nothing for this job is greyed out in the footer."""
        if action not in ("open_job", "stop_job", "resume_job", "cancel_job") or not self.is_mounted:
            return True
        record = self._current()
        if record is None:
            return None
        possible = {
            "open_job": True,
            "stop_job": record.state in ("starting", "running"),
            "resume_job": record.state in RESUMABLE_STATES,
            "cancel_job": record.state in LIVE_STATES,
        }
        return True if possible[action] else None

    def action_open_job(self) -> None:
        record = self._current()
        if record is not None:
            self.app.open_dashboard(record)  # type: ignore[attr-defined]

    def action_new_job(self) -> None:
        self.app.open_wizard()  # type: ignore[attr-defined]

    @work
    async def action_stop_job(self) -> None:
        record = self._current()
        if record is not None and await self.app.push_screen_wait(
            Confirm(f"Stop {record.name}? It saves a checkpoint first and can be resumed.", "Stop", "Keep running")
        ):
            await self._send("stop", self._client.stop, record)

    @work
    async def action_resume_job(self) -> None:
        record = self._current()
        if record is not None:
            await resume_run(self.app, self._client, record)

    @work
    async def action_cancel_job(self) -> None:
        record = self._current()
        if record is None:
            return
        loses = (
            f" What it trained since its last checkpoint is lost (step {record.step} now)."
            if record.state not in ("queued", "starting")
            else ""
        )
        if await self.app.push_screen_wait(Confirm(f"Cancel {record.name}?{loses}", "Cancel the job", "Keep it")):
            await self._send("cancel", self._client.cancel, record)

    async def _send(self, verb: str, request: Callable[[int], Awaitable[JobRecord]], record: JobRecord) -> None:
        try:
            await request(record.id)
        except (DaemonError, UserError) as e:
            self.notify(str(e), severity="error", timeout=10)
        else:
            self.notify(f"{record.name}: {verb} sent")
